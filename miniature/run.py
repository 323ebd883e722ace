"""The grid: every combination on the small worlds, with several seeds. Stop it at any time; it goes on where it was.

    python -m miniature.run --tasks mt --seeds 5 --tune      # once: choose the settings of each combiner on dev prompts
    python -m miniature.run --tasks mt --seeds 5             # the runs of PLAN.md
    python -m miniature.paper                                # tables and figures of what is done so far

A run is `train_ppo`, then `train_ppo --test` on the test prompts. Its record, a small file of miniature/results/, is
kept; its checkpoint is not.
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
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

from alarm.common.errors import UserError, report_user_errors
from alarm.common.files import read_json, read_rows, write_json
from alarm.common.flags import parser, positive_int
from alarm.training.run import read_log

from .grid import ORDER, QUESTIONS, Run, runs_of, tuning_runs
from .settings import WORLDS, World, scoring
from .stages import ROOT, flag_words

RESULTS = ROOT / "miniature" / "results"
TUNING_SEED = 1000  # no run of the grid has it
PARTS = ("oracle", "index")  # columns that are kept prompt by prompt, or not at all
LOADED = ("torch", "transformers", "accelerate", "alarm.training.main", "alarm.training.loop", "alarm.scoring")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    flags = parser(__doc__.split("\n\n")[0])
    add = flags.add_argument
    add("--tasks", nargs="+", default=["mt"], choices=tuple(WORLDS), help="which worlds")
    add("--seeds", type=positive_int, default=5, help="so many seeds of training: 0, 1, ...")
    add("--questions", nargs="+", default=list(QUESTIONS), choices=tuple(QUESTIONS), help="which questions of PLAN.md")
    add("--tune", action="store_true", help="instead: the tuning runs, on dev prompts; writes tuning.json")
    add(
        "--built",
        help="folder with a built world for each task (default: the shipped ones, with their data in --work_dir)",
    )
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
    data: Path
    work: Path
    results: Path

    def answered(self, split: str, prompts: int) -> Path:
        """The file of the first prompts of a split; written if it is not there."""
        target = self.work / f"{split}-{prompts}.jsonl"
        if not target.exists():
            rows = read_rows(self.data / f"{split}.{self.world.ending}")[:prompts]
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text("".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows), encoding="utf-8")
        return target


# --- processes -------------------------------------------------------------------------------------------------------


def call(words: Sequence[str], log: str) -> int:
    """In a process of its own: a command of the project, its output in a file. -> exit code."""
    import runpy

    Path(log).parent.mkdir(parents=True, exist_ok=True)
    with open(log, "w", buffering=1) as out, contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        sys.argv = ["", *words[2:]]
        try:
            runpy.run_module(words[1], run_name="__main__")
        except SystemExit as stop:
            return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    return 0


@contextlib.contextmanager
def processes(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Processes that have loaded the libraries once; each command gets a fresh one."""
    fixed = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    os.environ.update(fixed | {name: os.environ[name] for name in fixed if name in os.environ})
    context = get_context("forkserver")
    context.set_forkserver_preload(list(LOADED))
    with ProcessPoolExecutor(workers, mp_context=context, max_tasks_per_child=1) as pool:
        yield pool


# --- one run ---------------------------------------------------------------------------------------------------------


def do_run(pool: ProcessPoolExecutor, place: Place, run: Run, seed: int, split: str, args: argparse.Namespace) -> dict:
    """Train, answer, and return the record. Raises UserError if a command fails."""
    folder = place.work / f"seed{seed}" / run.name
    flags = place.world.files(place.built, place.data) | dict(place.world.ppo)
    flags |= {"holistic_model": place.built / run.holistic, "calibration": place.built / run.calibration} | dict(
        run.flags
    )
    flags |= {"max_steps": args.steps or place.world.steps, "seed": seed, "checkpoint_interval": 0}
    if run.curve:
        flags |= {"dev_file": place.answered("dev", 200), "eval_interval": 5, "eval_batch_size": 200}
    started = time.perf_counter()
    shutil.rmtree(folder, ignore_errors=True)
    command(pool, [*run.script, *flag_words(**flags, save_dir=folder)], folder.with_suffix(".log"))
    trained = time.perf_counter()
    answers = folder / "answers.json"
    test = scoring(flags) | {
        "policy_ckpt": folder / "policy",
        "seed": seed,
        "test_file": place.answered(split, args.prompts),
    }
    test |= {"test": True, "test_do_sample": True, "batch_size": 256, "save_dir": answers}
    command(pool, ["-m", "alarm.train_ppo", *flag_words(**test)], folder.with_suffix(".test.log"))
    record = {
        "world": place.world.name, "name": run.name, "seed": seed, "questions": run.questions, "split": split,
        "flags": {name: str(value) for name, value in flags.items() if name not in place.world.files(place.built)},
        "holistic": run.holistic,
        "seconds": {"train": round(trained - started, 1), "test": round(time.perf_counter() - trained, 1)},
    }  # fmt: skip
    record |= described(read_rows(answers)) | curves(read_log(folder / "log.jsonl"))
    shutil.rmtree(folder)
    return record


def command(pool: ProcessPoolExecutor, words: list[str], log: Path) -> None:
    if code := pool.submit(call, words, str(log)).result():
        lines = log.read_text(errors="replace").replace("\r", "\n").strip().splitlines()
        raise UserError(f"a command ended with exit code {code}; see {log}: {lines[-1] if lines else 'no output'}")


def described(rows: list[dict]) -> dict:
    """True quality of each answer, in the order of the prompts' texts, and means of the other columns."""
    numbers = [name for name, value in rows[0].items() if isinstance(value, int | float) and name not in PARTS]
    means = {}
    for name in numbers:
        known = [row[name] for row in rows if row[name] is not None]
        means[name] = statistics.fmean(known) if known else None
    empty = sum(not row["generation"].strip() for row in rows) / len(rows)
    return {"oracle": [round(row["oracle"], 4) for row in rows], "means": means | {"empty": empty}}


def curves(log: list[dict]) -> dict:
    """Of each step the KL, and of each evaluation (step, KL before it, true quality on dev prompts)."""
    kl, dev = [], []
    for row in log:
        if "train" in row:
            kl.append(row["train"]["kl"])
        if "oracle" in row.get("dev", {}):
            dev.append([len(kl), kl[-1] if kl else 0.0, row["dev"]["oracle"]])
    return {"kl": [round(value, 4) for value in kl], "dev": dev}


def start_record(pool: ProcessPoolExecutor, place: Place, seed: int, split: str, args: argparse.Namespace) -> dict:
    """The record of the policy that training starts from."""
    flags = place.world.files(place.built, place.data) | dict(place.world.ppo)
    answers = place.work / f"seed{seed}" / "start.json"
    test = scoring(flags) | {"policy_ckpt": flags["policy_ckpt"], "seed": seed, "test": True, "test_do_sample": True}
    test |= {"test_file": place.answered(split, args.prompts), "batch_size": 256, "save_dir": answers}
    command(pool, ["-m", "alarm.train_ppo", *flag_words(**test)], answers.with_suffix(".log"))
    return {"world": place.world.name, "name": "start", "seed": seed, "questions": "", "split": split} | described(
        read_rows(answers)
    )


# --- the grid --------------------------------------------------------------------------------------------------------


def place_of(world: World, args: argparse.Namespace) -> Place:
    work = Path(args.work_dir) / world.name
    built = Path(args.built) / world.name if args.built else world.shipped
    data = built / "data" if args.built else work / "data"
    for needed in (built / "start", built / "holistic", data / f"test.{world.ending}"):
        if not needed.exists():
            raise UserError(
                f"{needed} is missing; make it with `python -m miniature.build --world {world.name} --help`"
            )
    return Place(world, built, data, work, Path(args.results) / world.name)


def jobs_of(place: Place, args: argparse.Namespace) -> list[tuple[Run | None, int, str, Path]]:
    """(run or None for the start, seed, split, file of its record), in the order in which they are done."""
    if args.tune:
        folder = place.results / "tuning"
        runs = [run for _, run in tuning_runs(place.world)]
        return [(run, TUNING_SEED, "dev", folder / f"{run.name if run else 'start'}.json") for run in [None, *runs]]
    tuned = place.results / "tuning.json"
    if not tuned.exists():
        raise UserError(f"{tuned} is missing; choose the settings first: run the same command with --tune")
    chosen = {name: one["flags"] for name, one in read_json(tuned)["chosen"].items()}
    wanted = [run for run in runs_of(place.world, chosen) if set(run.questions) & set(args.questions)]
    wanted.sort(key=lambda run: min(ORDER.index(letter) for letter in run.questions))
    return [
        (run, seed, "test", place.results / f"seed{seed}" / f"{run.name if run else 'start'}.json")
        for seed in range(args.seeds)
        for run in [None, *wanted]
    ]


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


def do_all(jobs: list[tuple[Place, Run | None, int, str, Path]], args: argparse.Namespace) -> list[str]:
    """Do the jobs that have no record. -> messages of those that failed."""
    from tqdm import tqdm

    left = [job for job in jobs if not job[-1].exists()]
    print(f"{len(jobs)} runs, {len(jobs) - len(left)} of them done before", flush=True)
    failed, stop = [], threading.Event()
    with processes(args.workers) as pool, ThreadPoolExecutor(args.workers) as threads:

        def work(place: Place, run: Run | None, seed: int, split: str, file: Path) -> str:
            if stop.is_set():
                return ""
            record = (
                do_run(pool, place, run, seed, split, args) if run else start_record(pool, place, seed, split, args)
            )
            file.parent.mkdir(parents=True, exist_ok=True)
            write_json(file, record)
            quality = statistics.fmean(record["oracle"])
            return f"{place.world.name} seed {seed} {record['name']}: true quality {quality:.3f}"

        waiting: dict[Future, tuple] = {threads.submit(work, *job): job for job in left}
        try:
            with tqdm(total=len(left), unit="run") as bar:
                for done in as_completed(waiting):
                    try:
                        bar.write(done.result())
                    except UserError as error:
                        failed.append(str(error))
                        bar.write(f"failed: {error}")
                    bar.update()
        except (KeyboardInterrupt, BrokenProcessPool):
            stop.set()
            threads.shutdown(wait=False, cancel_futures=True)
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return failed


@report_user_errors
def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    places = [place_of(WORLDS[name], args) for name in args.tasks]
    jobs = [(place, *job) for place in places for job in jobs_of(place, args)]
    try:
        failed = do_all(jobs, args)
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
