"""Ten minutes on a GPU: does it compute what a CPU computes, and what does each stage of training cost at full size?

    python benchmarks/gpu_check.py --json gpu_check.json        (or: make gpu-check)

1. What the machine is, and its rates of matrix products and of memory.
2. Small models with the same weights on GPU and CPU: a line for each comparison, with its tolerance (agreement.py).
3. Seconds and memory of each stage at the paper's sizes with random weights, beside the least that its matrix products
   would take at the measured rates.
4. Answers with a static cache and with compiled steps (--generation_cache), beside the usual.

Nothing is downloaded. Parts come in the order of their worth; when --seconds are over no new one starts, and what was
left out is printed. The exit code is 1 if a comparison failed. `--device cpu --sizes tiny` runs the same code on a CPU;
its seconds are CPU seconds.
"""

from __future__ import annotations

import gc
import math
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages import Shape, World

from alarm.common.console import plain_table, print_table
from alarm.common.errors import UserError, report_user_errors
from alarm.common.files import check_writable, write_json
from alarm.common.flags import parser, positive_float

if TYPE_CHECKING:
    import argparse

    from agreement import Line

    from alarm.models.holistic import HolisticModel

ROOT = Path(__file__).resolve().parents[1]
GIB = 2**30
COMPILING = 120  # seconds that must be left before anything is compiled
DTYPES = ("float32", "bfloat16")
# the paper's headline runs; at this rate weights do not move, so that no pass over a batch ends early
HEADLINE = {
    "qa": ("--sigmoid_shaping", "--w_rel", "0", "--w_comp", "0", "--lr", "1e-8"),
    "mt": ("--sigmoid_shaping", "--w_read", "0", "--w_confidence", "0", "--lr", "1e-8"),
}
# the most telling first; qa's aspects are Longformers, mt's are no models
STAGES = {
    "qa": ("generate", "ppo", "holistic", "factuality", "relevance", "completeness", "pay"),
    "mt": ("generate", "ppo", "holistic"),
}
PAID = {"qa": None, "mt": ["grammar"]}  # the aspects that are loaded


@dataclass(frozen=True)
class Sizes:
    worlds: tuple[World, ...]
    holistic: dict[str, Shape]  # the largest first
    reserve: int  # bytes that must stay free beside the holistic model
    product: int  # rows of the matrices whose product is timed
    copied: int  # bytes of the copy that is timed
    repeats: int  # timed runs of a stage


def world_of(task: str, policy: Shape, readers: Shape, prompts: int, prompt_tokens: int, tokens: int) -> World:
    return World(
        task, policy, readers, None, prompts, prompt_tokens, tokens, "bfloat16", task == "mt", HEADLINE[task]
    )  # fmt: skip


LONGFORMER_BASE = Shape(768, 12, 12, 3072, 50265)
SMALL = Shape(32, 1, 2, 64, 200)
SIZES = {
    "paper": Sizes(
        worlds=(
            world_of("qa", Shape(1024, 24, 16, 4096, 32128), LONGFORMER_BASE, 8, 1024, 200),  # T5-large
            world_of("mt", Shape(768, 12, 12, 2048, 250112), LONGFORMER_BASE, 32, 128, 128),  # mT5-base
        ),
        holistic={
            "13B": Shape(5120, 40, 40, 13824, 32000),
            "7B": Shape(4096, 32, 32, 11008, 32000),
            "1B": Shape(2048, 22, 32, 5632, 32000),
        },
        reserve=12 * GIB,
        product=8192,
        copied=GIB,
        repeats=3,
    ),
    "tiny": Sizes(
        worlds=(world_of("qa", SMALL, SMALL, 8, 40, 8), world_of("mt", SMALL, SMALL, 32, 8, 4)),
        holistic={"tiny": SMALL},
        reserve=0,
        product=128,
        copied=2**22,
        repeats=1,
    ),
}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    flags = parser(__doc__.split("\n\n")[0])
    add = flags.add_argument
    add("--device", choices=("cuda", "cpu"), default="cuda", help="what is checked; cpu: against itself, as a test")
    add("--sizes", choices=tuple(SIZES), default="paper", help="of the stages' models and batches")
    add("--seconds", type=positive_float, default=540.0, help="after so many no new part starts")
    add("--json", metavar="FILE", help="write all that was found")
    args = flags.parse_args(argv)
    if args.json:
        check_writable(args.json, "--json")
    return args


@dataclass
class Check:
    """What was found, and the time that is left."""

    device: str
    sizes: Sizes
    seconds: float
    started: float = field(default_factory=time.monotonic)
    facts: dict = field(default_factory=dict)
    lines: list[Line] = field(default_factory=list)
    stages: list[dict] = field(default_factory=list)
    left_out: list[dict] = field(default_factory=list)

    def left(self) -> float:
        return self.seconds - (time.monotonic() - self.started)

    def leave_out(self, what: str, reason: str) -> None:
        self.left_out.append({"what": what, "reason": reason})
        say(f"left out: {what}: {reason}")

    def may_start(self, what: str, needed: float = 0) -> bool:
        """Whether there is time for a part; if not, it is noted as left out."""
        if self.left() > needed:
            return True
        self.leave_out(what, f"{self.seconds:.0f} seconds were over" if not needed else "too few seconds were left")
        return False

    def add(self, found: Line) -> None:
        self.lines.append(found)
        say(str(found))


def say(text: str) -> None:
    print(text, flush=True)


# --- 1. the machine --------------------------------------------------------------------------------------------------


def driver_version() -> str | None:
    """What nvidia-smi says; None without it."""
    if shutil.which("nvidia-smi") is None:
        return None
    ask = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"]
    try:
        found = subprocess.run(ask, capture_output=True, text=True, timeout=30)
    except subprocess.TimeoutExpired:
        return None
    return found.stdout.strip() or None


def free_memory(device: str) -> int:
    """Bytes."""
    import torch

    if device == "cuda":
        return torch.cuda.mem_get_info()[0]
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def machine(device: str, sizes: Sizes) -> dict:
    """Names, versions and rates."""
    import torch
    import transformers
    from measuring import bandwidth, matrix_rate

    on_gpu = device == "cuda"
    usual = torch.get_float32_matmul_precision()
    rates = {"float32": matrix_rate(device, torch.float32, sizes.product)}
    try:
        torch.set_float32_matmul_precision("high")
        rates["float32 with TF32"] = matrix_rate(device, torch.float32, sizes.product)
    finally:
        torch.set_float32_matmul_precision(usual)
    rates["bfloat16"] = matrix_rate(device, torch.bfloat16, sizes.product)
    return {
        "device": torch.cuda.get_device_name() if on_gpu else platform.processor() or platform.machine(),
        "memory GiB": torch.cuda.get_device_properties(0).total_memory / GIB if on_gpu else None,
        "free GiB": free_memory(device) / GIB,
        "driver": driver_version() if on_gpu else None,
        "CUDA": torch.version.cuda,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "float32 products in training": usual,  # highest: without TF32
        "operations a second": rates,
        "bytes a second": bandwidth(device, sizes.copied),
    }


def say_machine(facts: dict) -> None:
    for name, value in facts.items():
        if name == "operations a second":
            for dtype, rate in value.items():
                say(f"matrix products of {dtype}: {rate / 1e12:.4g} TFLOP/s")
        elif name == "bytes a second":
            say(f"memory: {value / 1e9:.4g} GB/s read and written by a copy")
        elif value is not None:
            say(f"{name}: {value:.1f}" if isinstance(value, float) else f"{name}: {value}")


# --- 2. against the CPU ----------------------------------------------------------------------------------------------


def reference_step(folder: Path) -> dict:
    """The PPO step on the CPU, in a process of its own."""
    import torch

    file = folder / "reference.pt"
    command = [sys.executable, str(ROOT / "benchmarks" / "agreement.py"), str(folder), str(file)]
    done = subprocess.run(
        command, env=os.environ | {"ACCELERATE_USE_CPU": "true"}, capture_output=True, text=True, timeout=300
    )
    if done.returncode:
        raise RuntimeError(f"the PPO step on the CPU failed: {done.stderr[-300:]}")
    return torch.load(file)


def compare(reference: Path, folder: Path, device: str) -> Iterator[Line]:
    """All comparisons of the models in `folder` on the device with those in `reference` on the CPU."""
    from agreement import POLICIES, policy_lines, ppo_lines, ppo_step, reward_lines

    wanted: dict = {}

    def of_ppo(dtype: str) -> Iterator[Line]:
        if not wanted:
            wanted.update(reference_step(reference))
        yield from ppo_lines(wanted, ppo_step(folder, dtype), dtype)

    groups: dict[str, Callable[[str], Iterator[Line]]] = {
        **{kind: lambda dtype, kind=kind: policy_lines(reference, folder, kind, device, dtype) for kind in POLICIES},
        "reward models": lambda dtype: reward_lines(reference, folder, device, dtype),
        "PPO step": of_ppo,
    }
    for dtype in DTYPES:
        yield from guarded(groups, dtype)


def guarded(groups: dict[str, Callable[[str], Iterator[Line]]], dtype: str) -> Iterator[Line]:
    """The lines of each group; one that raises becomes a line that failed, and does not hide the others."""
    from agreement import failed

    for name, lines in groups.items():
        try:
            yield from lines(dtype)
        except Exception as error:
            yield failed(name, dtype, error)


# --- 3. stages at full size ------------------------------------------------------------------------------------------


def parameters_of(shape: Shape) -> int:
    """Weights of a model in UltraRM's layout."""
    import torch
    from stages import random_holistic

    with torch.device("meta"):
        model, _ = random_holistic(shape, 1)
    return sum(weight.numel() for weight in model.parameters())


def largest_that_fits(bytes_of: dict[str, int], free: int, reserve: int) -> str | None:
    """The first name whose bytes leave the reserve free."""
    return next((name for name, size in bytes_of.items() if size + reserve <= free), None)


def holistic_model(check: Check) -> HolisticModel | None:
    """The largest holistic model that fits, with random weights of bfloat16 made on the device."""
    import torch
    from stages import random_holistic

    from alarm.models.holistic import HolisticModel

    bytes_of = {name: 2 * parameters_of(shape) for name, shape in check.sizes.holistic.items()}
    free = free_memory(check.device)
    name = largest_that_fits(bytes_of, free, check.sizes.reserve)
    for larger, size in bytes_of.items():
        if larger == name:
            break
        what = f"{size / GIB:.0f} GiB and {check.sizes.reserve / GIB:.0f} for the rest, {free / GIB:.0f} are free"
        check.leave_out(f"holistic model of {larger}", what)
    if name is None:
        return None
    usual = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.bfloat16)
        with torch.device(check.device):
            model, tokenizer = random_holistic(check.sizes.holistic[name], 2048)
    finally:
        torch.set_default_dtype(usual)
    check.facts["holistic model"] = {"size": name, "GiB": bytes_of[name] / GIB}
    say(f"holistic model: {name}, {bytes_of[name] / GIB:.1f} GiB")
    return HolisticModel(model.eval().requires_grad_(False), tokenizer)


def timed(action: Callable[[], Any], device: str) -> dict:
    """One run -> {"seconds", "MiB" that it adds, "highest" MiB}."""
    import torch
    from measuring import Peak, seconds

    torch.manual_seed(0)  # every run draws the same answers
    peak = Peak(device == "cuda")
    peak.start()
    started = seconds(device)
    action()
    return {"seconds": seconds(device) - started, "MiB": peak.added(), "highest": peak.highest()}


def cost(name: str, runs: list[dict], products: tuple[int, int], facts: dict) -> dict:
    """Timed runs of a stage, and how near they come to the limits of its (operations, bytes)."""
    from measuring import summary

    found = summary(runs)
    operations, moved = products
    limits = {
        "products": operations / facts["operations a second"]["bfloat16"],
        "memory": moved / facts["bytes a second"],
    }
    highest = [run["highest"] for run in runs]
    return {
        "stage": name,
        "seconds": found["seconds"],
        "least": found["least"],
        "most": found["most"],
        "runs": len(runs),
        "GiB added": None if found["MiB"] is None else found["MiB"] / 2**10,
        "GiB": None if None in highest else max(highest) / 2**10,
        "operations": operations,
        "bytes": moved,
        "limits": limits,
        "share": max(limits.values()) / found["seconds"] if operations and found["seconds"] else None,
    }


def say_cost(found: dict) -> None:
    share = "" if found["share"] is None else f", {found['share']:.0%} of what is possible"
    say(f"{found['stage']}: {found['seconds']:.4f} s ({found['least']:.4f}-{found['most']:.4f}){share}")


def repeat(action: Callable[[], Any], check: Check) -> list[dict]:
    """One run or more, fewer than wanted if the time is over."""
    runs = [timed(action, check.device)]
    while len(runs) < check.sizes.repeats and check.left() > runs[-1]["seconds"]:
        runs.append(timed(action, check.device))
    return runs


def measure_stage(name: str, action: Callable[[], Any], check: Check) -> tuple[int, int]:
    """One run that is counted, then those that are timed. -> operations and bytes of its matrix products"""
    import torch
    from measuring import count_products

    torch.manual_seed(0)
    *products, result = count_products(action)
    found = cost(name, repeat(action, check), tuple(products), check.facts)
    if isinstance(result, dict):
        found["updates"] = result["ppo/updates"]
    check.stages.append(found)
    say_cost(found)
    return tuple(products)


def out_of_memory(error: Exception) -> str | None:
    import torch

    return "it needs more memory than there is" if isinstance(error, torch.OutOfMemoryError) else None


def release() -> None:
    """Give back what is no longer used."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def measure_world(world: World, holistic: HolisticModel | None, folder: Path, check: Check) -> None:
    """All stages of a world, and for qa generation with other caches."""
    from stages import load_stages, make_world

    from trl.config import CACHES

    files = make_world(world, folder, check.device)
    # without a holistic model nothing reads its place
    stages, others = load_stages(files, check.device, PAID[world.task], holistic or NoScores())
    others["use"](None)
    generated = None
    for stage in STAGES[world.task]:
        name = f"{world.task} {stage}"
        if stage == "holistic" and holistic is None:
            check.leave_out(name, "no holistic model fits")
        elif check.may_start(name):
            try:
                products = measure_stage(name, stages[stage], check)
                generated = products if stage == "generate" else generated
            except Exception as error:
                if (reason := out_of_memory(error)) is None:
                    raise
                check.leave_out(name, reason)
                release()
    if world.task != "qa" or generated is None:
        return
    for cache, settings in CACHES.items():
        if not settings:
            continue
        name = f"{world.task} generate, {cache} cache"
        if may_start_with(cache, name, check):
            try:
                first = timed(lambda settings=settings: others["answer"](**settings), check.device)
                runs = repeat(lambda settings=settings: others["answer"](**settings), check)
            except Exception as error:  # it is an option: a machine without a compiler is none that failed
                check.leave_out(name, out_of_memory(error) or f"{type(error).__name__}: {str(error)[:200]}")
                release()
                continue
            found = cost(name, runs, generated, check.facts) | {"first run": first["seconds"]}
            check.stages.append(found)
            say_cost(found)


def may_start_with(cache: str, name: str, check: Check) -> bool:
    """Whether the part `name`, which generates with this cache, is done here and there is time left for it."""
    compiles = cache == "compiled"
    if compiles and check.device == "cpu":
        check.leave_out(name, "transformers compiles on a GPU alone")
        return False
    return check.may_start(name, COMPILING if compiles else 0)


class NoScores:
    """In the place of a holistic model that does not fit: every score is 0."""

    def score(self, prompts: list[str], answers: list[str], *_: int):
        import torch

        return torch.zeros(len(answers))


# --- 4. other caches -------------------------------------------------------------------------------------------------


def compare_caches(folder: Path, cache: str, check: Check) -> None:
    """Greedy tokens of the small policies with this cache."""
    from agreement import POLICIES, cache_line

    for kind, name in POLICIES.items():
        what = f"{name} greedy tokens, {cache} cache"
        if may_start_with(cache, what, check):
            try:
                found = cache_line(folder, folder, kind, check.device, "float32", cache)
            except Exception as error:  # as above
                check.leave_out(what, f"{type(error).__name__}: {str(error)[:200]}")
                continue
            check.add(found)


# --- the run ---------------------------------------------------------------------------------------------------------


def run(check: Check, folder: Path) -> None:
    """All parts, in the order of their worth."""
    from agreement import write_models

    say("\n1. the machine")
    check.facts |= machine(check.device, check.sizes)
    say_machine(check.facts)

    say("\n2. the same weights on this device and on a CPU in float32")
    say(f"{'':<46}{'difference':>12}{'tolerance':>12}")
    small = folder / "small"
    write_models(small)
    for found in compare(small, small, check.device):
        check.add(found)
    compare_caches(small, "static", check)

    say("\n3. stages")
    holistic = None
    if check.may_start("holistic model"):
        holistic = holistic_model(check)
    for world in check.sizes.worlds:
        if check.may_start(f"all of {world.task}"):
            try:
                measure_world(world, holistic, folder / world.task, check)
            except Exception as error:
                if (reason := out_of_memory(error)) is None:
                    raise
                check.leave_out(f"the rest of {world.task}", reason)
            release()
    compare_caches(small, "compiled", check)


def results(check: Check) -> dict:
    """All that was found, as JSON has it: a difference that is not finite is null there, and not ok."""
    lines = [asdict(found) | {"ok": found.ok} for found in check.lines]
    for found in lines:
        for name in ("difference", "tolerance"):
            found[name] = found[name] if math.isfinite(found[name]) else None
    return {
        "facts": check.facts,
        "comparisons": lines,
        "stages": check.stages,
        "left out": check.left_out,
        "seconds": time.monotonic() - check.started,
    }


def say_all(check: Check) -> None:
    """The tables at the end."""

    def number(value: float | None, form: str) -> str:
        return "-" if value is None else format(value, form)

    rows = [
        (
            found["stage"],
            f"{found['seconds']:.4f}",
            f"{found['least']:.4f}-{found['most']:.4f}",
            number(found["GiB added"], ".2f"),
            number(found["GiB"], ".2f"),
            f"{found['limits']['products']:.4f}",
            f"{found['limits']['memory']:.4f}",
            number(found["share"], ".0%"),
        )
        for found in check.stages
    ]
    headings = ("stage", "seconds", "least-most", "GiB added", "GiB", "products", "bytes", "share")
    note = (
        "products, bytes: the seconds that the matrix products take at the measured rates; share: the larger / seconds"
    )
    say("")
    print_table(plain_table("Stages", headings, rows, note))
    for missing in check.left_out:
        say(f"left out: {missing['what']}: {missing['reason']}")
    wrong = [found for found in check.lines if not found.ok]
    for found in wrong:
        say(str(found))
    say(f"{len(check.lines) - len(wrong)} of {len(check.lines)} comparisons are ok")


def finish(check: Check, file: str | None) -> int:
    """Print the tables, write the file -> the exit code: 1 if a comparison failed or none was made."""
    say_all(check)
    if file:
        write_json(file, results(check))
        say(f"wrote {file}")
    return 0 if check.lines and all(found.ok for found in check.lines) else 1


@report_user_errors
def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    import torch

    if args.device == "cuda" and not torch.cuda.is_available():
        raise UserError(
            f"torch {torch.__version__} finds no GPU on this machine; run this on one that has a GPU and its driver "
            "(without one: --device cpu --sizes tiny)"
        )
    sys.path.insert(0, str(ROOT))  # the package `miniature` is not installed
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.simplefilter("ignore", FutureWarning)
    import transformers

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    # before accelerate, which has one device a process, is used first
    os.environ["ACCELERATE_USE_CPU"] = str(args.device == "cpu").lower()
    check = Check(args.device, SIZES[args.sizes], args.seconds)
    with tempfile.TemporaryDirectory() as temporary:
        run(check, Path(temporary))
    sys.exit(finish(check, args.json))


if __name__ == "__main__":
    main()
