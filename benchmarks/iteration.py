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
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, redirect_stdout
from pathlib import Path

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


# --- worlds ----------------------------------------------------------------------------------------------------------


def random_text(rng: random.Random, words: list[str], count: int) -> str:
    """`count` words; about one in twelve ends a sentence."""
    picked = [rng.choice(words[1:]) if rng.random() > 1 / 12 else "." for _ in range(count - 1)]
    return " ".join([*picked, "."])


def make_world(name: str, folder: Path, args: argparse.Namespace) -> dict:
    """Write models and data -> {"task", "argv" of train_ppo.py, "answers": texts to score (None: sampled ones)}."""
    if name == "miniature":
        from miniature.settings import WORLDS as SMALL_WORLDS
        from miniature.stages import flag_words

        world = SMALL_WORLDS["mt"]
        flags = world.files(world.shipped, Path(args.data).resolve()) | dict(world.ppo)
        del flags["task"]
        return {"task": str(ROOT / world.task), "argv": flag_words(**flags, save_dir=folder / "run"), "answers": None}
    import torch
    import transformers
    from transformers import (
        LlamaConfig,
        LongformerConfig,
        LongformerForSequenceClassification,
        LongformerForTokenClassification,
        T5Config,
        T5ForConditionalGeneration,
    )

    from alarm.models.holistic import LlamaRewardModel
    from miniature.models import policy_tokenizer, reader_tokenizer

    transformers.utils.logging.disable_progress_bar()
    rng = random.Random(0)
    torch.manual_seed(0)
    words = [".", *(f"w{number}" for number in range(args.vocabulary - 4))]
    prompts, longest = (
        (args.prompts, args.prompt_tokens) if name == "qa" else (4 * args.prompts, args.prompt_tokens // 8)
    )
    positions = longest + args.tokens + 32
    heads, size = args.hidden // 64, args.hidden
    tokenizer = policy_tokenizer(words)
    policy = T5ForConditionalGeneration(
        T5Config(
            vocab_size=len(tokenizer), d_model=size, d_kv=64, num_heads=heads, d_ff=4 * size, num_layers=args.layers,
            num_decoder_layers=args.layers, decoder_start_token_id=0, pad_token_id=0, eos_token_id=1,
            initializer_factor=0.05,
        )
    )  # fmt: skip
    reader = reader_tokenizer(words, positions, both_ends=True)
    shape = {
        "vocab_size": len(reader), "hidden_size": size, "intermediate_size": 4 * size, "num_hidden_layers": args.layers,
        "num_attention_heads": heads,
    }  # fmt: skip
    special = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}
    llama = LlamaRewardModel(LlamaConfig(max_position_embeddings=positions, **shape, **special))
    llama.config.architectures = ["LlamaRewardModel"]
    models = {"policy": (policy, tokenizer), "holistic": (llama, reader)}
    if name == "qa":
        shape |= special | {"attention_window": 512, "max_position_embeddings": positions + 2}
        units = LongformerConfig(id2label=dict(enumerate(("F-ERR", "NF-ERR", "O"))), **shape)
        models["rm/rel_rm"] = models["rm/fact_rm"] = LongformerForTokenClassification(units), reader
        models["rm/comp_rm"] = LongformerForSequenceClassification(LongformerConfig(num_labels=1, **shape)), reader
    for place, (model, own) in models.items():
        model.save_pretrained(folder / place)
        own.save_pretrained(folder / place)
    texts = [random_text(rng, words, rng.randint(longest // 2, longest)) for _ in range(2 * prompts)]
    key = ("text",) if name == "qa" else ("translation", "es")
    rows = [
        {"text": text, "question": "w1 w2 w3", "passages": [], "answer": [text]}
        if key == ("text",)
        else {"translation": {"es": text, "en": text}}
        for text in texts
    ]
    (folder / "rows.json").write_text(json.dumps(rows))
    flags = [
        "--policy_ckpt", folder / "policy", "--holistic_model", folder / "holistic", "--report_to", "none",
        "--train_file", folder / "rows.json", "--dev_file", folder / "rows.json", "--save_dir", folder / "run",
        "--batch_size", prompts, "--dtype", "float32",
    ]  # fmt: skip
    if name == "qa":
        flags += ["--max_generated_len", args.tokens, "--max_input_len", longest, "--reward_model_dir", folder / "rm"]
        flags += ["--splitter", "sentencizer"]
    else:
        flags += ["--max_len", max(args.tokens, longest), "--prompt_prefix", "", "--grammar_backend", "rules"]
    answers = [random_text(rng, words, rng.randint(args.tokens // 2, args.tokens)) for _ in range(prompts)]
    return {"task": name, "argv": [str(flag) for flag in flags], "answers": answers}


# --- a process that has one revision's code --------------------------------------------------------------------------


class Peak:
    """MiB that a stage adds to the process at its highest. None where it cannot be measured."""

    def __init__(self, on_gpu: bool) -> None:
        self.on_gpu = on_gpu

    def _kib(self, key: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(key))

    def start(self) -> None:
        import torch

        if self.on_gpu:
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated() / 2**20
            return
        try:
            Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
            self.before = self._kib("VmRSS") / 2**10
        except OSError:
            self.before = None

    def added(self) -> float | None:
        import torch

        if self.before is None:
            return None
        now = torch.cuda.max_memory_allocated() / 2**20 if self.on_gpu else self._kib("VmHWM") / 2**10
        return now - self.before


def load_stages(world: dict, device: str) -> tuple[dict, dict]:
    """The stages by name; and `use`, which sets the rollout that those after generation read, `found` and `scorer`."""
    import torch

    from alarm.api import Settings
    from alarm.common.launch import process_state
    from alarm.rewards import RewardRecipe, combine
    from alarm.scoring import holistic_of, load_scorer, measure
    from alarm.tasks.find import find_task
    from alarm.training.generate import generator
    from alarm.training.main import load_splits, parse_args
    from alarm.training.policy import build_trainer, encode_splits, load_tokenizer
    from alarm.training.rollout import sample_rollout
    from alarm.types import Rollout
    from trl.generation import GREEDY, SAMPLING

    os.environ["ACCELERATE_USE_CPU"] = str(device == "cpu").lower()
    task = find_task(world["task"])
    args = parse_args(task, "", world["argv"])
    if task.configure is not None:
        task = task.configure(task, args)
    state = process_state()
    tokenizer = load_tokenizer(args.policy_ckpt, args)
    rows = load_splits(task, args)
    prompts = encode_splits(tokenizer, rows, task, args.max_input_len, dict.fromkeys(rows, "a file"))["train"]
    settings = Settings(args, tokenizer, state.device, getattr(torch, args.dtype))
    names = [aspect.name for aspect in task.aspects]
    recipe = RewardRecipe.from_flags(args, task)
    scorer = load_scorer(task, names, settings, holistic_of(task, args, settings))
    ppo = build_trainer(args, args.policy_ckpt, tokenizer, prompts)
    each = args.samples_per_prompt
    batch = [prompt for prompt in prompts[: args.batch_size // each] for _ in range(each)]
    groups = None if each == 1 else torch.arange(len(batch)) // each
    limit = {"max_new_tokens": args.max_generated_len}
    sample, greedy = (generator(ppo.policy, tokenizer, **how | limit) for how in (SAMPLING, GREEDY))
    queries = [prompt.ids for prompt in batch]
    found: dict = {}

    def use(ids: list[list[int]] | None) -> list[list[int]]:
        """Set the rollout: these answers, or sampled ones. -> its ids"""
        if ids is None and world["answers"] is not None:
            ids = [[*tokenizer(text, add_special_tokens=False)["input_ids"], 1] for text in world["answers"]]
        given = None if ids is None else [torch.tensor(row) for row in ids]
        rollout: Rollout = sample_rollout(sample if given is None else lambda _: given, tokenizer, batch)
        found["rollout"], found["measured"] = rollout, measure(rollout, scorer, recipe.paid_aspects)
        return [row.tolist() for row in rollout.response_ids]

    stages = {
        "generate": lambda: sample(queries),
        "greedy": lambda: greedy(queries),
        "holistic": lambda: scorer.holistic(found["rollout"]),
        **{name: lambda name=name: scorer.aspects[name](found["rollout"]) for name in names},
        "pay": lambda: combine(found["measured"], recipe, groups),
        "ppo": lambda: ppo.step(
            queries, found["rollout"].response_ids, combine(found["measured"], recipe, groups).rewards
        ),
    }
    return stages, {"use": use, "found": found, "scorer": scorer}


def matrix_rate(device: str) -> float:
    """Operations a second of a large float32 matrix product, the best of five."""
    import torch

    x = torch.randn(1024, 1024, device=device)
    best = float("inf")
    for _ in range(5):
        started = seconds(device)
        for _ in range(4):
            x @ x
        best = min(best, (seconds(device) - started) / 4)
    return 2 * 1024**3 / best


def attention_flops() -> dict:
    """How torch shall count its fused attention on a CPU, which it leaves out: as that on a GPU."""
    import torch
    from torch.utils.flop_counter import sdpa_flop_count

    aten = torch.ops.aten

    def forward(query, key, value, *args, out_shape=None, **kwargs):
        return sdpa_flop_count(query, key, value)

    def backward(gradient, query, key, value, *args, out_shape=None, **kwargs):
        return sdpa_flop_count(query, key, value) * 5 // 2  # the scores again, and four products more

    return {
        aten._scaled_dot_product_flash_attention_for_cpu: forward,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: backward,
    }


def seconds(device: str) -> float:
    """CPU seconds of this process; on a GPU seconds by the clock once all that was asked for is done."""
    if device == "cpu":
        return time.process_time()
    import torch

    torch.cuda.synchronize()
    return time.perf_counter()


def work(file: str) -> None:
    """Answer requests, a line of JSON each, until the input ends. Standard output carries nothing but answers."""
    answers = sys.stdout
    with redirect_stdout(sys.stderr):
        import torch
        from torch.utils.flop_counter import FlopCounterMode

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
                answer = matrix_rate(device)
            elif request.get("count"):
                counter = FlopCounterMode(display=False, custom_mapping=attention_flops())
                torch.manual_seed(0)
                with counter:
                    stages[request["stage"]]()
                answer = counter.get_total_flops()
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
    folder.mkdir()
    world = make_world(name, folder, args) | {"device": args.device, "threads": args.threads}
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


def summary(runs: list[dict]) -> dict:
    times = sorted(run["seconds"] for run in runs)
    memory = [run["MiB"] for run in runs]
    return {
        "seconds": statistics.median(times),
        "least": times[0],
        "most": times[-1],
        "MiB": None if None in memory else max(memory),
    }


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
