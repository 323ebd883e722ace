"""Seconds of each stage of a training iteration, beside what its matrix products alone would take.

Three worlds: `qa` and `mt` are the paper's tasks with models of random weights and texts of random words, of the sizes
that the flags give; `miniature` is the shipped translation world (give its --data, which
`python -m miniature.mt.data --save_dir DIR` writes). Each stage is what train_ppo.py calls: sampling, the greedy
answers of the dev file, the holistic model, each aspect, the payment, `PPOTrainer.step`.

With --against REV the same stages run in a copy of the repository at that revision too, in a process of its own. The
two take turns, stage by stage and repeat by repeat, so that a busy machine is busy for both.

    python benchmarks/iteration.py --world qa mt --against HEAD~5

Seconds are CPU seconds of the process (with --device cuda: seconds by the clock), the median of --repeats after one
that is not counted. *limit* is the stage's matrix products, those of attention too (operations counted by torch in the
first revision's run), at the rate of a large product measured in the same run. Each repeat reads the same texts, so the
grammar checker answers from its cache. Peak memory is what a stage adds to the process (Linux).
--grow NAME=1,2,4 repeats all of it with --NAME multiplied by each, for a curve. With several --processes the seconds
are those of the process that took longest.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
from contextlib import ExitStack, redirect_stdout
from pathlib import Path

# beside this file: `benchmarks.stages` would be looked for in an installed package of that name
from stages import Shape, World, load_stages, make_world

ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    sys.path[:0] = os.environ.get("ALARM_TREE", f"{ROOT}:{ROOT / 'trl'}").split(":")

WORLDS = ("qa", "mt", "miniature")
GROWING = ("prompts", "prompt_tokens", "tokens", "processes")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    flags = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = flags.add_argument
    add("--world", nargs="+", choices=WORLDS, default=["qa", "mt"], help="what is timed")
    add("--data", help="folder of the miniature's data")
    add("--against", metavar="REV", help="a revision of this repository to compare with")
    add("--stages", nargs="+", help="these alone (generate, greedy, holistic, an aspect, pay, ppo)")
    add("--repeats", type=int, default=3, help="timed runs of each stage")
    add("--prompts", type=int, default=8, help="of a batch; mt: 4 times as many")
    add("--prompt_tokens", type=int, default=1000, help="of the longest prompt of qa; mt: an eighth of it")
    add("--tokens", type=int, default=128, help="of the longest answer")
    add("--hidden", type=int, default=256, help="hidden size of all models, a multiple of 64")
    add("--layers", type=int, default=4, help="of all models")
    add("--vocabulary", type=int, default=8000, help="words of all models")
    add("--grow", metavar="NAME=1,2,4", help=f"multiply --NAME by each ({', '.join(GROWING)})")
    add("--processes", type=int, default=1, help="that work together on CPUs, each with a batch of this size")
    add("--threads", type=int, default=1, help="CPU threads")
    add("--device", choices=("cpu", "cuda"), default="cpu", help="where models run")
    add("--json", metavar="FILE", help="write all that was measured")
    add("--worker", help=argparse.SUPPRESS)
    args = flags.parse_args(argv)
    if "miniature" in args.world and not args.data:
        flags.error("--world miniature needs --data; write it with python -m miniature.mt.data --save_dir DIR")
    if args.grow and (args.grow.partition("=")[0] not in GROWING or "miniature" in args.world):
        flags.error(f"--grow is {'|'.join(GROWING)}=1,2,4, for qa and mt")
    if args.device == "cuda" and (args.processes > 1 or (args.grow or "").startswith("processes")):
        flags.error("--processes is for --device cpu")
    if args.hidden % 64:
        flags.error("--hidden is a multiple of 64")
    return args


def make_files(name: str, folder: Path, args: argparse.Namespace) -> dict:
    """Write models and data -> {"task", "argv" of train_ppo.py, "answers": texts to score (None: sampled ones)}."""
    if name == "miniature":
        from miniature.settings import WORLDS as SMALL_WORLDS
        from miniature.stages import flag_words

        world = SMALL_WORLDS["mt"]
        flags = world.files(world.shipped, Path(args.data).resolve()) | dict(world.ppo)
        del flags["task"]
        return {"task": str(ROOT / world.task), "argv": flag_words(**flags, save_dir=folder / "run"), "answers": None}
    shape = Shape(args.hidden, args.layers, args.hidden // 64, 4 * args.hidden, args.vocabulary)
    prompts, longest = (
        (args.prompts, args.prompt_tokens) if name == "qa" else (4 * args.prompts, args.prompt_tokens // 8)
    )
    return make_world(World(name, shape, shape, shape, prompts, longest, args.tokens), folder)


# --- a process that has one revision's code --------------------------------------------------------------------------


def work(file: str) -> None:
    """Answer requests, a line of JSON each, until the input ends. Standard output carries nothing but answers."""
    answers = sys.stdout
    with redirect_stdout(sys.stderr):
        import torch
        from measuring import Peak, count_products, matrix_rate, seconds

        world = json.loads(Path(file).read_text())
        device = world["device"]
        torch.set_num_threads(world["threads"])
        stages, others = load_stages(world, device)
        print(json.dumps({"stages": list(stages)}), file=answers, flush=True)
        for line in sys.stdin:
            request = json.loads(line)
            if "use" in request:
                answer = others["use"](request["use"])
            elif "rate" in request:
                answer = matrix_rate(device, torch.float32, 1024 if device == "cpu" else 8192)
            elif request.get("count"):
                torch.manual_seed(0)
                answer, *_ = count_products(stages[request["stage"]])
            else:
                torch.manual_seed(request["seed"])
                peak = Peak(device == "cuda")
                peak.start()
                started = seconds(device)
                stages[request["stage"]]()
                answer = {"seconds": seconds(device) - started, "MiB": peak.added()}
            print(json.dumps(answer), file=answers, flush=True)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Worker:
    """Processes with the code of `tree` that work together; all get each request."""

    def __init__(self, tree: Path, file: Path, processes: int) -> None:
        environment = os.environ | {"ALARM_TREE": f"{tree}:{tree / 'trl'}", "PYTHONPATH": f"{tree}:{tree / 'trl'}"}
        environment.setdefault("HF_HUB_OFFLINE", "1")
        if processes > 1:
            sizes = {"WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes, "MASTER_PORT": free_port()}
            environment |= {"MASTER_ADDR": "127.0.0.1"} | {name: str(size) for name, size in sizes.items()}
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115, as long as the processes live
        self.processes = []
        for rank in range(processes):
            own = {"RANK": str(rank), "LOCAL_RANK": str(rank)} if processes > 1 else {}
            self.processes.append(
                subprocess.Popen(
                    [sys.executable, __file__, "--worker", str(file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                    stderr=self.log, text=True, env=environment | own, cwd=tree,
                )
            )  # fmt: skip
        self.stages = self.read()[0]["stages"]

    def read(self) -> list:
        """What each process answers."""
        lines = [process.stdout.readline() for process in self.processes]
        if not all(lines):
            self.log.seek(0)
            sys.exit(f"the measuring process ended:\n{self.log.read()[-3000:]}")
        return [json.loads(line) for line in lines]

    def ask(self, **request):
        """The answer of the process that took longest, or else of the first."""
        for process in self.processes:
            print(json.dumps(request), file=process.stdin, flush=True)
        answers = self.read()
        timed = isinstance(answers[0], dict)
        return max(answers, key=lambda answer: answer["seconds"]) if timed else answers[0]

    def close(self) -> None:
        for process in self.processes:
            process.stdin.close()
        for process in self.processes:
            process.wait()


# --- the run ---------------------------------------------------------------------------------------------------------


def measure_world(name: str, folder: Path, trees: dict[str, Path], args: argparse.Namespace) -> dict:
    """{"rate", "stages": {stage: {"limit", "revisions": {revision: {"seconds", "MiB"}}}}}"""
    from measuring import summary

    folder.mkdir()
    world = make_files(name, folder, args) | {"device": args.device, "threads": args.threads}
    file = folder / "world.json"
    file.write_text(json.dumps(world))
    with ExitStack() as stack:
        workers = {}
        for revision, tree in trees.items():
            workers[revision] = Worker(tree, file, args.processes)
            stack.callback(workers[revision].close)
        first = next(iter(workers.values()))
        ids = first.ask(use=None)
        for worker in workers.values():
            worker.ask(use=ids)
        stages = [stage for stage in first.stages if not args.stages or stage in args.stages]
        rate = first.ask(rate=True)
        found = {}
        for stage in stages:
            runs: dict[str, list[dict]] = {revision: [] for revision in workers}
            for repeat in range(args.repeats + 1):
                for revision, worker in workers.items():
                    run = worker.ask(stage=stage, seed=repeat)
                    runs[revision] += [run] if repeat else []
            limit = first.ask(stage=stage, count=True) / rate
            found[stage] = {"limit": limit, "revisions": {r: summary(of) for r, of in runs.items()}}
            print(line(stage, found[stage]), flush=True)
    return {"rate": rate, "stages": found}


def line(stage: str, found: dict) -> str:
    """A line of the table: each revision's seconds (least to most) and memory, their ratio, the limit."""
    words = f"{stage:<14}"
    medians = []
    for of in found["revisions"].values():
        medians.append(of["seconds"])
        memory = "-" if of["MiB"] is None else f"{of['MiB']:.0f}"
        words += f"{of['seconds']:>9.4f} ({of['least']:.4f}-{of['most']:.4f}){memory:>7}"
    ratio = f"{medians[0] / medians[-1]:>8.2f}" if len(medians) > 1 and medians[-1] else ""
    return f"{words}{ratio}{found['limit']:>10.4f}"


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    if args.worker:
        work(args.worker)
        return
    name, _, factors = (args.grow or "prompts=1").partition("=")
    results = []
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
        trees = {"here": ROOT}
        if args.against:
            tree = Path(temporary) / "against"
            git = ["git", "-C", str(ROOT), "worktree"]
            subprocess.run([*git, "add", "--detach", str(tree), args.against], check=True, capture_output=True)
            stack.callback(subprocess.run, [*git, "remove", "--force", str(tree)], capture_output=True)
            trees = {args.against: tree, "here": ROOT}
        for number, factor in enumerate(map(int, factors.split(","))):
            sized = argparse.Namespace(**vars(args) | {name: factor * getattr(args, name)})
            for world in args.world:
                size = "" if world == "miniature" else f", {name} times {factor}" if args.grow else ""
                print(f"\n{world}{size}: CPU seconds (least-most) and MiB added", flush=True)
                headings = "".join(f"{revision:>32}" for revision in trees)
                print(f"{'stage':<14}{headings}{'ratio' if args.against else '':>8}{'limit':>10}", flush=True)
                measured = measure_world(world, Path(temporary) / f"{world}{number}", trees, sized)
                print(f"matrix products: {measured['rate'] / 1e9:.0f} GFLOP/s", flush=True)
                results.append({"world": world, name: getattr(sized, name), **measured})
    if args.json:
        Path(args.json).write_text(json.dumps({"flags": vars(args), "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
