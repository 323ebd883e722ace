"""The quickstart: ALaRM on long-form QA from data to comparison, at a size that fits a laptop.

Each stage is a command that you could type; it is printed before it runs. Run again after an interruption: finished
stages are skipped, and an interrupted PPO run goes on from its last checkpoint.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shlex
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from alarm.errors import UserError, report_user_errors
from alarm.files import write_json
from alarm.flags import parser, positive_int

ROOT = Path(__file__).resolve().parents[1]
PROMPT_TOKENS = 128  # the question and the start of the first passage: all that a policy of this size makes use of
MARKER = "stages"  # a folder in the work folder: one file for each finished stage


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    flags = parser(__doc__.split("\n\n")[0])
    add = flags.add_argument
    add("--task", default="qa", choices=("qa",), help="which task to run")
    add("--work_dir", default=str(ROOT / "quickstart" / "work"), help="folder of everything that is written")
    add("--data_dir", default=str(ROOT / "quickstart" / "data" / "qa"), help="folder of the sample")
    add("--splitter", default="en_core_web_sm", help="sentence splitter: a spaCy pipeline's name, pysbd or sentencizer")
    add("--steps", type=positive_int, help="at most this many steps in every training stage (for a quick look)")
    add("--seed", type=int, default=42, help="seed of every stage")
    return flags.parse_args(argv)


# --- stages ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stage:
    """One command. `words` is called when the stage's turn comes: it may read what earlier stages wrote."""

    name: str
    output: str  # file or folder in the work folder; it appears whole, or holds a run that --resume continues
    words: Callable[[], list[str]]
    resumable: bool = False


def flag_words(**values) -> list[str]:
    """Keyword arguments as command-line words; True stands for a switch."""
    words = []
    for name, value in values.items():
        if value is True:
            words.append(f"--{name}")
        elif value is not None:
            words += [f"--{name}", f"{value:.6g}" if isinstance(value, float) else str(value)]
    return words


def short(path: Path) -> str:
    """The path as typed from the repository root."""
    path = Path(os.path.abspath(path))
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


def qa_stages(args: argparse.Namespace) -> list[Stage]:
    work, data = Path(args.work_dir), Path(args.data_dir)
    files = {f"{split}_file": short(data / f"{split}.json") for split in ("train", "dev", "test")}
    train_dev = {name: files[name] for name in ("train_file", "dev_file")}
    feedback = {f"{split}_feedback_file": short(data / f"{split}_feedback.json") for split in ("train", "dev")}
    common = {"seed": args.seed, "report_to": "none"}

    def at(name: str) -> str:
        return short(work / name)

    def steps(number: int) -> int:
        return min(number, args.steps or number)

    def base_models() -> list[str]:
        return ["quickstart/make_base_models.py", *flag_words(train_file=files["train_file"], save_dir=at("base"))]

    def sft() -> list[str]:
        flags = flag_words(
            model_path=at("base/t5"), **train_dev, save_dir=at("sft"), max_input_len=PROMPT_TOKENS, num_epochs=8,
            batch_size=4, lr=4e-3, max_steps=args.steps, **common,
        )  # fmt: skip
        return ["long-form-QA/train_sft.py", *flags]

    def reward_model(aspect: str, folder: str, epochs: int, batch_size: int, most_steps: int | None = None) -> Stage:
        def words() -> list[str]:
            flags = flag_words(
                aspect=aspect, model_path=at("base/longformer"), **train_dev, **feedback,
                save_dir=at(f"reward_models/{folder}"), splitter=args.splitter, num_epochs=epochs,
                batch_size=batch_size, lr=1e-3, max_steps=args.steps or most_steps, **common,
            )  # fmt: skip
            return ["long-form-QA/train_rm.py", *flags]

        return Stage(f"{aspect} reward model", f"reward_models/{folder}", words)

    def holistic() -> list[str]:
        flags = flag_words(
            model_path=at("base/llama"), **train_dev, **feedback, save_dir=at("holistic"), num_epochs=1, lr=1e-3,
            max_steps=steps(90), **common,
        )  # fmt: skip
        return ["-m", "alarm.train_holistic", *flags]

    def scoring(calibrated: bool) -> dict:
        """What every train_ppo.py takes: the models, and the constants that fit their scores."""
        mean, std = holistic_scale(work / "calibration.json") if calibrated else (0.0, 1.0)
        completeness = json.loads((work / "reward_models/comp_rm/metrics.json").read_text())
        return {
            "reward_model_dir": at("reward_models"),
            "holistic_model": at("holistic"),
            "splitter": args.splitter,
            "ultra_mean": mean,
            "ultra_std": std,
            "completeness_reward_mean": completeness["score_mean"],
            "completeness_reward_std": completeness["score_std"] or 1.0,
            "max_input_len": PROMPT_TOKENS,
            "dtype": "float32",
            "seed": args.seed,
        }

    def calibration() -> list[str]:
        flags = flag_words(
            test=True, test_do_sample=True, policy_ckpt=at("sft"), test_file=files["dev_file"],
            save_dir=at("calibration.json"), batch_size=50, **scoring(calibrated=False),
        )  # fmt: skip
        return ["long-form-QA/train_ppo.py", *flags]

    def ppo(reward_type: str) -> Stage:
        def words() -> list[str]:
            flags = flag_words(
                policy_ckpt=at("sft"), **train_dev, save_dir=at(f"runs/{reward_type}"), resume=True,
                reward_type=reward_type, sigmoid_shaping=True, w_rel=0, w_fact=1, w_comp=0,
                **scoring(calibrated=True), batch_size=8, mini_batch_size=4, gradient_accumulation_steps=2,
                max_steps=steps(12), eval_interval=0, checkpoint_interval=4, report_to="none",
            )  # fmt: skip
            return ["long-form-QA/train_ppo.py", *flags]

        return Stage(f"PPO, {reward_type}", f"runs/{reward_type}", words, resumable=True)

    def test(name: str, policy: str) -> Stage:
        def words() -> list[str]:
            flags = flag_words(
                test=True, test_do_sample=True, policy_ckpt=at(policy), test_file=files["test_file"],
                save_dir=at(f"generations/{name}.json"), batch_size=50, **scoring(calibrated=True),
            )  # fmt: skip
            return ["long-form-QA/train_ppo.py", *flags]

        return Stage(f"answers of {name}", f"generations/{name}.json", words)

    def compare() -> list[str]:
        return ["eval/eval_compare.py", *flag_words(generations_dir=at("generations"), task_type="qa")]

    return [
        Stage("untrained base models", "base", base_models),
        Stage("supervised policy", "sft", sft),
        reward_model("relevance", "rel_rm", epochs=3, batch_size=8),
        reward_model("factuality", "fact_rm", epochs=1, batch_size=4),
        reward_model("completeness", "comp_rm", epochs=1, batch_size=4, most_steps=30),
        Stage("holistic reward model", "holistic", holistic),
        Stage("scale of the holistic score", "calibration.json", calibration),
        ppo("hierarchical"),
        ppo("holistic_only"),
        test("sft", "sft"),
        test("hierarchical", "runs/hierarchical"),
        test("holistic_only", "runs/holistic_only"),
        Stage("comparison", "generations_results/eval-results.json", compare),
    ]


def holistic_scale(path: Path) -> tuple[float, float]:
    """Mean and deviation of the raw holistic scores of the policy's own answers, which the gate is relative to."""
    scores = [row["holistic_reward"] for row in json.loads(path.read_text())]
    # an empty answer stands at -10 instead of a score
    scores = [score for score in scores if score != -10] or [0.0]
    deviation = statistics.stdev(scores) if len(scores) > 1 else 0.0
    return statistics.mean(scores), deviation or 1.0


# --- running them ----------------------------------------------------------------------------------------------------


def clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def printable(words: list[str], width: int = 110) -> str:
    """A command line that can be pasted, broken at flags."""
    lines, line = [], ""
    for word in words:
        quoted = shlex.quote(word)
        if line and word.startswith("--") and len(line) + len(quoted) > width:
            lines.append(line)
            line = "   "
        line += (" " if line else "") + quoted
    return " \\\n".join([*lines, line])


def remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def check_work_dir(work: Path) -> None:
    """Raise UserError for a folder that holds something else than a quickstart."""
    if work.is_file():
        raise UserError(f"--work_dir {work} is a file; give the path of a folder")
    if work.is_dir() and any(work.iterdir()) and not (work / MARKER).is_dir():
        raise UserError(f"--work_dir {work} holds other files; give a new folder or one that a quickstart wrote")
    (work / MARKER).mkdir(parents=True, exist_ok=True)


def run_stage(stage: Stage, work: Path, python: str, environment: dict) -> dict | None:
    """Run a stage unless it is done. Returns what it took, or None where it was skipped."""
    marker = work / MARKER / f"{stage.output.replace('/', '-')}.json"
    words = stage.words()
    before = json.loads(marker.read_text()) if marker.exists() else None
    if before and before["words"] == words and (work / stage.output).exists():
        print(f"done before, in {clock(before['seconds'])}", flush=True)
        return None
    marker.unlink(missing_ok=True)
    if before or not stage.resumable:
        # written with other flags, or by a stage that was stopped between its output and its marker
        remove(work / stage.output)
    print(printable([python, *words]), flush=True)
    start, used = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    child = subprocess.Popen([sys.executable, *words], cwd=ROOT, env=environment)
    try:
        code = child.wait()
    except KeyboardInterrupt:
        child.wait()  # ^C reaches the whole process group
        raise
    if code:
        print(f"\n{stage.name} ended with exit code {code}; run the same command again to go on from here", flush=True)
        sys.exit(code if code > 0 else 128 - code)
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    took = {
        "stage": stage.name,
        "words": words,
        "seconds": time.perf_counter() - start,
        "cpu_seconds": usage.ru_utime + usage.ru_stime - used.ru_utime - used.ru_stime,
    }
    write_json(marker, took)
    return took


def run_stages(stages: list[Stage], work: Path) -> None:
    python = os.path.relpath(sys.executable, ROOT)
    python = sys.executable if python.startswith("..") else python
    quiet = {"PYTHONWARNINGS": "ignore::FutureWarning"}  # of the libraries, about each other
    environment = {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", **quiet, **os.environ}
    start = time.perf_counter()
    for number, stage in enumerate(stages, start=1):
        print(f"\n[{number}/{len(stages)}] {stage.name}   (elapsed {clock(time.perf_counter() - start)})", flush=True)
        took = run_stage(stage, work, python, environment)
        if took:
            print(f"{stage.name}: {took['seconds']:.0f} s, {took['cpu_seconds']:.0f} s of CPU", flush=True)
            # what was made from the older output of this stage is out of date
            for later in stages[number:]:
                if not later.resumable or (work / MARKER / f"{later.output.replace('/', '-')}.json").exists():
                    remove(work / later.output)
                (work / MARKER / f"{later.output.replace('/', '-')}.json").unlink(missing_ok=True)


# --- what came out ---------------------------------------------------------------------------------------------------


def reward_model_lines(work: Path) -> list[str]:
    """Each reward model beside what needs no model."""
    lines = [f"{'reward model':<16}{'dev examples':>13}{'accuracy':>10}{'baseline':>10}{'AUROC':>8}"]
    for name, folder in (
        ("relevance", "reward_models/rel_rm"),
        ("factuality", "reward_models/fact_rm"),
        ("completeness", "reward_models/comp_rm"),
        ("holistic", "holistic"),
    ):
        dev = json.loads((work / folder / "metrics.json").read_text())["dev"]
        if "pairwise_accuracy" in dev:
            baseline = max(dev["baseline_accuracy"], dev["longer_wins_accuracy"], 1 - dev["longer_wins_accuracy"])
            row = (dev["pairs"], dev["pairwise_accuracy"], baseline, "-")
        else:
            area = "-" if dev["auroc"] is None else f"{dev['auroc']:.3f}"
            row = (dev["units"], dev["accuracy"], dev["baseline_accuracy"], area)
        lines.append(f"{name:<16}{row[0]:>13}{row[1]:>10.3f}{row[2]:>10.3f}{row[3]:>8}")
    return [*lines, "baseline: the most frequent class; for pairs the best of 0.5, `longer wins` and `shorter wins`"]


def generation_lines(work: Path) -> list[str]:
    """Mean metrics of each policy's test answers, and one answer of each."""
    generations = {path.stem: json.loads(path.read_text()) for path in sorted((work / "generations").glob("*.json"))}
    names = [name for name, value in next(iter(generations.values()))[0].items() if not isinstance(value, str)]
    lines = [f"{'policy':<16}" + "".join(f"{name:>{len(name) + 3}}" for name in names)]
    for policy, rows in generations.items():
        means = (statistics.mean(row[name] for row in rows) for name in names)
        lines.append(f"{policy:<16}" + "".join(f"{m:>{len(n) + 3}.3f}" for n, m in zip(names, means, strict=True)))
    first = next(iter(generations.values()))[0]["query"]
    lines += ["", f"one test question: {first.split(' context:')[0][:110]}"]
    for policy, rows in generations.items():
        answer = next(row["generation"] for row in rows if row["query"] == first)
        lines.append(f"  {policy}: {answer[:220]!r}")
    return lines


def gate_lines(work: Path) -> list[str]:
    """What the hierarchical run's gate and its aspect did, from its log."""
    log = (work / "runs/hierarchical/log.jsonl").read_text().splitlines()
    steps = [row["train"] for row in map(json.loads, log) if "train" in row]
    gate = statistics.mean(row["gate_rate"] for row in steps)
    rates = [row["factuality_rate"] for row in steps]
    return [
        f"hierarchical PPO, {len(steps)} steps: {gate:.0%} of the answers passed the gate; "
        f"their factuality rate per step lay between {min(rates):.2f} and {max(rates):.2f}"
    ]


def summary(work: Path, stages: list[Stage]) -> str:
    took = [json.loads((work / MARKER / f"{stage.output.replace('/', '-')}.json").read_text()) for stage in stages]
    times = [f"{'stage':<32}{'seconds':>9}{'CPU seconds':>13}"]
    times += [f"{row['stage']:<32}{row['seconds']:>9.0f}{row['cpu_seconds']:>13.0f}" for row in took]
    wall, cpu = (sum(row[name] for row in took) for name in ("seconds", "cpu_seconds"))
    times.append(f"{'together':<32}{wall:>9.0f}{cpu:>13.0f}")
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    if peak:
        times.append(f"largest process of this call: {peak:.1f} GiB")
    words = """\
What this shows: every part works together, from human feedback to reward models, to PPO, to the comparison.
What it cannot show: that hierarchical rewards are better. The policy has under two million parameters and saw 200
questions, so its answers are word salad or stock phrases; reward models of this size sit near their baselines (the
table says how near); a few PPO steps move little; and 50 test questions leave wide error bars. Differences between
the rows above are noise unless a longer run repeats them. With published checkpoints the same commands apply."""
    blocks = [times, reward_model_lines(work), generation_lines(work), gate_lines(work), [words]]
    return "\n\n".join("\n".join(block) for block in blocks)


@report_user_errors
def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    work = Path(args.work_dir)
    check_work_dir(work)
    stages = {"qa": qa_stages}[args.task](args)
    try:
        run_stages(stages, work)
    except KeyboardInterrupt:
        print("\ninterrupted; run the same command again to go on from here", file=sys.stderr, flush=True)
        sys.exit(130)
    print("\n" + summary(work, stages))


if __name__ == "__main__":
    main()
