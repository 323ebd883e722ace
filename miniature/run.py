"""The grid: every combination on the small worlds, with several seeds. Stop it at any time; it goes on where it was.

    python -m miniature.run --tasks mt --seeds 5 --tune      # once: choose the settings of each combiner on dev prompts
    python -m miniature.run --tasks mt --seeds 5             # the runs of PLAN.md
    python -m miniature.paper                                # tables and figures of what is done so far

A run is `train_ppo`, then `train_ppo --test` on the test prompts. Its record, a small file of miniature/results/, is
kept; its checkpoint is not. A record that was made with other settings or another built world stops the command.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import statistics
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing import active_children, get_context
from multiprocessing.context import ForkServerContext
from pathlib import Path

from alarm.common.errors import UserError, report_user_errors
from alarm.common.files import is_finite_number, read_json, read_rows, write_json, write_rows
from alarm.common.flags import parser, positive_int
from alarm.common.identity import hash_file
from alarm.tasks.find import find_task
from alarm.training.provenance import versions
from alarm.training.run import finite, read_log

from .grid import ORDER, QUESTIONS, Run, ranked_runs, runs_of, tuning_runs
from .settings import WORLDS, World, scoring
from .stages import ROOT, flag_words

RESULTS = ROOT / "miniature" / "results"
TUNING_SEED = 1000  # no run of the grid has it
CURVE_PROMPTS = 200  # dev prompts of the curves of question b
SAMPLES = 16  # answers to a dev prompt of question c
RANKING = ("holistic_reward_weight", "hierarchical_threshold", "shaping", "placement", "holistic_baseline")
PARTS = ("oracle", "index")  # columns that are kept prompt by prompt, or not at all
LOADED = ("torch", "transformers", "accelerate", "alarm.training.main", "alarm.training.loop", "alarm.scoring")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    flags = parser(__doc__.split("\n\n")[0])
    add = flags.add_argument
    add("--tasks", nargs="+", default=["mt"], choices=tuple(WORLDS), help="which worlds")
    add("--seeds", type=positive_int, default=5, help="so many seeds of training: 0, 1, ...")
    add("--questions", nargs="+", default=list(QUESTIONS), choices=tuple(QUESTIONS), help="which questions of PLAN.md")
    add("--tune", action="store_true", help="instead: the tuning runs, on dev prompts; writes tuning.json")
    add("--built", default="miniature/work/built", help="folder with a built world for each task: mt, qa")
    add("--work_dir", default="miniature/work", help="folder of checkpoints and logs")
    add("--results", default=str(RESULTS), help="folder of the records")
    add("--workers", type=positive_int, default=1, help="runs at once, one thread each")
    add("--steps", type=positive_int, help="PPO steps of each run (default: the world's)")
    add("--prompts", type=positive_int, default=500, help="use the first so many test (or dev) prompts")
    return flags.parse_args(argv)


@dataclass(frozen=True)
class Place:
    """Where the files of a world are."""

    world: World
    built: Path
    work: Path
    results: Path

    @property
    def command(self) -> str:
        """What makes the built world."""
        return f"python -m miniature.build --world {self.world.name} --flips 0 0.25 --save_dir {self.built}"

    def prompts(self, split: str, count: int) -> Path:
        """The file of the first prompts of a split, which `write_prompts` wrote."""
        return self.work / f"{split}-{count}.json"

    def write_prompts(self, split: str, count: int) -> None:
        source = self.built / "data" / f"{split}.{self.world.ending}"
        rows = read_rows(source)
        if len(rows) < count:
            raise UserError(f"{source} has {len(rows)} prompts; give --prompts {len(rows)} or fewer")
        write_rows(self.prompts(split, count), rows[:count])

    def hashes(self, *names: str) -> dict[str, str]:
        """What tells two built worlds apart: of each file or model the first digits of its hash."""
        files = {name: self.built / name for name in ("start", *names)}
        files = {name: path if path.suffix == ".json" else path / "model.safetensors" for name, path in files.items()}
        for path in files.values():
            if not path.exists():
                raise UserError(f"{path} is missing; make it with `{self.command}`")
        return {name: hash_file(path)[:12] for name, path in files.items()}


@dataclass(frozen=True)
class Job:
    """What makes one record. `settings` are in the record, so that one made with others is not taken for it."""

    title: str
    file: Path
    settings: dict
    make: Callable[[], dict]
    place: Place
    prompts: tuple[tuple[str, int], ...]  # files of prompts that it reads: split, count


# --- processes -------------------------------------------------------------------------------------------------------


def call(words: Sequence[str], log: str) -> int:
    """In a process of its own: a command of the project, its output in a file. -> exit code."""
    import runpy

    Path(log).parent.mkdir(parents=True, exist_ok=True)
    with open(log, "w", buffering=1) as out, contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        try:
            if words[0] == "-m":
                sys.argv = ["", *words[2:]]
                runpy.run_module(words[1], run_name="__main__")
            else:
                sys.argv = list(words)
                runpy.run_path(words[0], run_name="__main__")
        except SystemExit as stop:
            return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        except Exception:
            traceback.print_exc()
            return 1
    return 0


@lru_cache
def context() -> ForkServerContext:
    """Processes that have loaded the libraries once."""
    fixed = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    os.environ.update(fixed | {name: os.environ[name] for name in fixed if name in os.environ})
    server = get_context("forkserver")
    server.set_forkserver_preload(list(LOADED))
    return server


def command(words: list[str], log: Path) -> None:
    """Run a command of the project, its output in `log`. UserError if it fails.

    A pool of its own: a process that is killed breaks its pool, and must not end the other runs.
    """
    with ProcessPoolExecutor(1, mp_context=context()) as pool:
        try:
            code = pool.submit(call, words, str(log)).result()
        except BrokenProcessPool:
            raise UserError(f"the process of a command was killed, perhaps for want of memory; see {log}") from None
    if code:
        lines = log.read_text(errors="replace").replace("\r", "\n").strip().splitlines()
        raise UserError(f"a command ended with exit code {code}; see {log}: {lines[-1] if lines else 'no output'}")


# --- one run ---------------------------------------------------------------------------------------------------------


def flags_of(place: Place, run: Run | None, seed: int, args: argparse.Namespace) -> dict[str, object]:
    """Flags of train_ppo.py. Those of the start have no run, which only answers."""
    flags = place.world.files(place.built) | dict(place.world.ppo) | {"seed": seed}
    if run is None:
        return flags
    flags |= {"holistic_model": place.built / run.holistic, "calibration": place.built / run.calibration}
    flags |= dict(run.flags) | {"max_steps": args.steps or place.world.steps, "checkpoint_interval": 0}
    if run.curve:
        flags |= {"dev_file": place.prompts("dev", CURVE_PROMPTS), "eval_interval": 5, "eval_batch_size": CURVE_PROMPTS}
    return flags


def settings_of(place: Place, run: Run | None, seed: int, split: str, args: argparse.Namespace) -> dict:
    """What a record depends on, beside the code. No path of this machine is in it."""
    files = place.world.files(place.built)
    flags = {name: str(value) for name, value in flags_of(place, run, seed, args).items() if name not in files}
    holistic, calibration = (run.holistic, run.calibration) if run else ("holistic", "calibration.json")
    task = str(run.flags.get("task", place.world.task)) if run else place.world.task
    return {
        "task": task, "flags": flags, "holistic": holistic, "calibration": calibration, "split": split,
        "prompts": args.prompts, "built": place.hashes(holistic, calibration),
    }  # fmt: skip


def answers_to(place: Place, flags: dict, split: str, count: int, **more) -> list[str]:
    """The command that answers prompts and scores the answers as in training."""
    test = scoring(flags) | {"policy_ckpt": flags["policy_ckpt"], "seed": flags["seed"], "test": True}
    test |= {"test_file": place.prompts(split, count), "batch_size": 256, "overwrite": True}
    return ["-m", "alarm.train_ppo", *flag_words(**test | more)]


def do_run(place: Place, run: Run | None, seed: int, split: str, args: argparse.Namespace) -> dict:
    """Train, answer, and return the record; of the start, answer alone. Raises UserError if a command fails."""
    folder = place.work / f"seed{seed}" / (run.name if run else "start")
    flags = flags_of(place, run, seed, args)
    shutil.rmtree(folder, ignore_errors=True)
    started = time.perf_counter()
    if run:
        command([*run.script, *flag_words(**flags, save_dir=folder)], folder.with_suffix(".log"))
        flags["policy_ckpt"] = folder / "policy"
    trained = time.perf_counter()
    answers = folder / "answers.json"
    test = answers_to(place, flags, split, args.prompts, test_do_sample=True, save_dir=answers)
    command(test, folder.with_suffix(".test.log"))
    record = {
        "world": place.world.name, "name": folder.name, "seed": seed, "questions": run.questions if run else "",
        "seconds": {"train": round(trained - started, 1), "test": round(time.perf_counter() - trained, 1)},
        "versions": versions(),
    }  # fmt: skip
    record |= described(read_rows(answers)) | (curves(read_log(folder / "log.jsonl")) if run else {})
    shutil.rmtree(folder)
    return record


def described(rows: list[dict]) -> dict:
    """True quality of each answer, in the order of the prompts, and of the other columns the means of what is known.

    unknown: of a column with nulls, how many answers have none.
    """
    columns = {name for row in rows for name, value in row.items() if is_finite_number(value)} - set(PARTS)
    means, unknown = {}, {}
    for name in sorted(columns):
        known = [row[name] for row in rows if row.get(name) is not None]
        means[name] = statistics.fmean(known)
        unknown |= {name: len(rows) - len(known)} if len(known) < len(rows) else {}
    means["empty"] = sum(not row["generation"].strip() for row in rows) / len(rows)
    return {"oracle": [round(row["oracle"], 4) for row in rows], "means": means, "unknown": unknown}


def curves(log: list[dict]) -> dict:
    """Of each step the KL, of all the share of open gates; of each evaluation (step, KL before it, true quality)."""
    kl, gates, dev = [], [], []
    for row in log:
        if "train" in row:
            value = row["train"]["kl"]
            kl.append(None if value is None else round(value, 4))  # null: it was not finite
            gates.append(row["train"]["gate_rate"])
        if "oracle" in row.get("dev", {}):
            dev.append([len(kl), kl[-1] if kl else 0.0, row["dev"]["oracle"]])
    return {"kl": kl, "gate": None if None in gates else statistics.fmean(gates), "dev": dev}


# --- the start's own answers -----------------------------------------------------------------------------------------


def rank(place: Place, runs: Sequence[Run], args: argparse.Namespace) -> dict:
    """Question c: the quality of the best of 16 answers of the start to dev prompts, by the reward of each run."""
    folder = place.work / "rank"
    shutil.rmtree(folder, ignore_errors=True)
    flags, samples = flags_of(place, None, 0, args), folder / "samples.json"
    several = answers_to(place, flags, "dev", args.prompts, test_do_sample=True, num_samples=SAMPLES, save_dir=samples)
    command(several, folder / "samples.log")
    found = {}
    for run in runs:
        own, bench = dict(place.world.ppo) | dict(run.flags), folder / f"{run.name}.json"
        words = {name: value for name, value in own.items() if name in RANKING or name.startswith("w_")}
        words |= {"generations": samples, "quality": "oracle", "combine": own["reward_type"], "save_path": bench}
        command(["-m", "alarm.best_of_n", *flag_words(**words)], folder / f"{run.name}.log")
        told = read_json(bench)
        line = told["chosen"][own["reward_type"]]
        found[run.name] = {"quality": line["quality"][-1], "interval": line["intervals"][-1]}
        found[run.name]["tokens"] = line.get("response_length", [None])[-1]
    ends = {name: told[name]["quality"][-1] for name in ("at_random", "best_possible")}
    shutil.rmtree(folder)
    return {"world": place.world.name, "samples": SAMPLES, **ends, "runs": found}


def select(place: Place, args: argparse.Namespace) -> dict:
    """Question g: how often each aspect contradicts the holistic reward, and how often it agrees with the truth."""
    folder = place.work / "select"
    shutil.rmtree(folder, ignore_errors=True)
    flags = flags_of(place, None, 0, args)
    for name, sampled in (("greedy", None), ("sampled", True)):
        words = answers_to(
            place, flags, "dev", args.prompts, test_do_sample=sampled, save_dir=folder / "answers" / f"{name}.json"
        )
        command(words, folder / f"{name}.log")
    files = {name: folder / "answers" / f"{name}.json" for name in ("greedy", "sampled")}
    words = flag_words(**files, task_type=place.world.task, output_dir=folder / "selection")
    command([str(ROOT / "eval" / "select_rewards.py"), *words], folder / "selection.log")
    told = read_json(folder / "selection" / "selection.json")
    kept = {name: told[name] for name in ("prompts", "decided", "recommended", "separable", "reason")}
    keys = ("inconsistency", "inconsistency_interval", "decided_share", "eligible")
    metrics = {name: {key: row[key] for key in keys} for name, row in told["metrics"].items()}
    agreement = place.built / "agreement.json"
    within = read_json(agreement)["rewards"] if agreement.exists() else {}
    names = {metric.key: metric.name for aspect in find_task(place.world.task).aspects for metric in aspect.metrics}
    for key, row in metrics.items():
        row["within"] = within.get(names.get(key, key), {}).get("within")
    shutil.rmtree(folder)
    return {"world": place.world.name} | kept | {"metrics": metrics}


# --- the grid --------------------------------------------------------------------------------------------------------


def place_of(world: World, args: argparse.Namespace) -> Place:
    folders = (Path(folder) / world.name for folder in (args.built, args.work_dir, args.results))
    place = Place(world, *folders)
    if not place.built.is_dir():
        raise UserError(f"{place.built} is missing; make it with `{place.command}`")
    return place


def jobs_of(place: Place, args: argparse.Namespace) -> list[Job]:
    """In the order in which they are done."""

    def job(run: Run | None, seed: int, split: str, folder: Path) -> Job:
        name = run.name if run else "start"
        needed = ((split, args.prompts), *((("dev", CURVE_PROMPTS),) if run and run.curve else ()))
        return Job(
            f"{place.world.name} seed {seed} {name}", folder / f"{name}.json",
            settings_of(place, run, seed, split, args),
            lambda: do_run(place, run, seed, split, args), place, needed,
        )  # fmt: skip

    if args.tune:
        runs = [run for _, run in tuning_runs(place.world)]
        return [job(run, TUNING_SEED, "dev", place.results / "tuning") for run in (None, *runs)]
    tuned = place.results / "tuning.json"
    if not tuned.exists():
        raise UserError(f"{tuned} is missing; choose the settings first: run the same command with --tune")
    chosen = {name: one["flags"] for name, one in read_json(tuned)["chosen"].items()}
    runs = runs_of(place.world, chosen)
    wanted = [run for run in runs if set(run.questions) & set(args.questions)]
    wanted.sort(key=lambda run: min(ORDER.index(letter) for letter in run.questions))
    found = [
        job(run, seed, "test", place.results / f"seed{seed}") for seed in range(args.seeds) for run in (None, *wanted)
    ]
    of_start = settings_of(place, None, 0, "dev", args)
    ranked, dev = ranked_runs(runs), (("dev", args.prompts),)
    makers = {
        "c": (
            "ranks",
            {"ranked": {run.name: dict(run.flags) for run in ranked}},
            lambda: rank(place, ranked, args),
        ),
        "g": ("selection", {}, lambda: select(place, args)),
    }
    for letter, (name, more, make) in makers.items():
        if letter in args.questions:
            file = place.results / "start" / f"{name}.json"
            found.append(Job(f"{place.world.name} {name} of the start", file, of_start | more, make, place, dev))
    return found


def is_done(job: Job) -> bool:
    """Whether its record is there. UserError if that was made with other settings."""
    if not job.file.exists():
        return False
    before = read_json(job.file).get("settings", {})
    changed = [name for name, value in job.settings.items() if before.get(name) != value]
    if changed:
        was, now = (json.dumps(side.get(changed[0])) for side in (before, job.settings))
        raise UserError(
            f"{job.file} was made with other {', '.join(changed)} (the first: {was}, now {now}); remove it, or name "
            "another folder by --results"
        )
    return True


def choose(place: Place) -> None:
    """Write tuning.json: for each combiner the setting of the highest true quality on dev prompts, and all of them."""
    found: dict[str, list[dict]] = {}
    for combiner, run in tuning_runs(place.world):
        record = read_json(place.results / "tuning" / f"{run.name}.json")
        quality = statistics.fmean(record["oracle"])
        found.setdefault(combiner, []).append(
            {"name": run.name, "flags": {k: v for k, v in run.flags.items() if k != "reward_type"}, "quality": quality}
        )
    chosen = {combiner: max(tried, key=lambda one: one["quality"]) for combiner, tried in found.items()}
    start = statistics.fmean(read_json(place.results / "tuning" / "start.json")["oracle"])
    write_json(place.results / "tuning.json", {"start": start, "chosen": chosen, "tried": found})
    for combiner, one in chosen.items():
        print(f"{combiner}: {one['name']}, true quality on dev prompts {one['quality']:.3f} (start {start:.3f})")


def do_all(jobs: Sequence[Job], workers: int) -> list[str]:
    """Do the jobs that have no record. -> messages of those that failed."""
    from tqdm import tqdm

    left = [job for job in jobs if not is_done(job)]
    print(f"{len(jobs)} runs, {len(jobs) - len(left)} of them done before", flush=True)
    needed = {job.place.prompts(*one): (job.place, one) for job in left for one in job.prompts}
    for place, one in needed.values():
        place.write_prompts(*one)
    failed, stop = [], threading.Event()
    with ThreadPoolExecutor(workers) as threads:

        def work(job: Job) -> str:
            if stop.is_set():
                return ""
            record = job.make()
            write_json(job.file, finite({"settings": job.settings} | record))
            told = f": true quality {statistics.fmean(record['oracle']):.3f}" if "oracle" in record else ""
            return f"{job.title}{told}"

        waiting: list[Future] = [threads.submit(work, job) for job in left]
        try:
            with tqdm(total=len(left), unit="run") as bar:
                for done in as_completed(waiting):
                    try:
                        bar.write(done.result())
                    except OSError:
                        raise
                    except Exception as error:  # of one run; hours of others must not be lost
                        failed.append(str(error) if isinstance(error, UserError) else repr(error))
                        bar.write(f"failed: {failed[-1]}")
                    bar.update()
        except BaseException:
            stop.set()
            threads.shutdown(wait=False, cancel_futures=True)
            for child in active_children():  # `kill -INT` reaches this process alone
                child.terminate()
            raise
    return failed


@report_user_errors
def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    places = [place_of(WORLDS[name], args) for name in args.tasks]
    jobs = [job for place in places for job in jobs_of(place, args)]
    try:
        failed = do_all(jobs, args.workers)
    except KeyboardInterrupt:
        print("\ninterrupted; run the same command again to go on from here", file=sys.stderr, flush=True)
        sys.exit(130)
    if failed:
        raise UserError(f"{len(failed)} runs failed; the first: {failed[0]}")
    if args.tune:
        for place in places:
            choose(place)


if __name__ == "__main__":
    main()
