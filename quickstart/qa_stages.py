"""The quickstart's stages for long-form QA, and what its summary says of them."""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

from alarm.common.console import Table, plain_table
from miniature.stages import ROOT, Stage, flag_words, short
from quickstart.stages import (
    one_answer_each,
    pair_baseline,
    plots,
    policy_table,
    read_policies,
    training_rows,
    what_to_look_at,
)

DATA = ROOT / "quickstart" / "data" / "qa"
PROMPT_TOKENS = 128  # the question and the start of the first passage: all that a policy of this size makes use of


def qa_stages(args: argparse.Namespace, work: Path) -> list[Stage]:
    """`args`: data_dir (None: the shipped sample), splitter, steps, seed."""
    data = Path(args.data_dir or DATA)
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
            model_path=at("base/t5"), **train_dev, save_dir=at("sft"), max_input_len=PROMPT_TOKENS, num_epochs=6,
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

    def calibration() -> list[str]:
        flags = flag_words(
            task="qa", policy_ckpt=at("sft"), prompts=files["dev_file"], rewards="holistic,length",
            holistic_model=at("holistic"), max_input_len=PROMPT_TOKENS, batch_size=50, dtype="float32", seed=args.seed,
            save_path=at("calibration.json"),
        )  # fmt: skip
        return ["-m", "alarm.calibrate", *flags]

    def scoring() -> dict:
        """What every train_ppo.py takes: the models, and the constants that fit their scores."""
        completeness = json.loads((work / "reward_models/comp_rm/metrics.json").read_text())
        return {
            "reward_model_dir": at("reward_models"),
            "holistic_model": at("holistic"),
            "splitter": args.splitter,
            "calibration": at("calibration.json"),
            # the paper's 0.6 lies beyond almost all scores of a model of this size
            "threshold_quantile": 0.5,
            "completeness_reward_mean": completeness["score_mean"],
            # a model of this size may give every answer the same score
            "completeness_reward_std": completeness["score_std"] or 1.0,
            "max_input_len": PROMPT_TOKENS,
            "dtype": "float32",
            "seed": args.seed,
        }

    # the paper's aspect is factuality; a model of this size calls every sentence factual, so relevance takes its place
    def recipe(reward_type: str) -> dict:
        return {"reward_type": reward_type, "sigmoid_shaping": True, "w_rel": 1, "w_fact": 0, "w_comp": 0}

    def ppo(reward_type: str) -> Stage:
        def words() -> list[str]:
            flags = flag_words(
                policy_ckpt=at("sft"), **train_dev, save_dir=at(f"runs/{reward_type}"), resume=True,
                **recipe(reward_type), **scoring(), batch_size=8, mini_batch_size=4, gradient_accumulation_steps=2,
                max_steps=steps(12), eval_interval=0, checkpoint_interval=4, report_to="none",
            )  # fmt: skip
            return ["long-form-QA/train_ppo.py", *flags]

        return Stage(f"PPO, {reward_type}", f"runs/{reward_type}", words, resumable=True)

    def test(name: str, policy: str) -> Stage:
        def words() -> list[str]:
            flags = flag_words(
                test=True, test_do_sample=True, policy_ckpt=at(policy), test_file=files["test_file"],
                save_dir=at(f"generations/{name}.json"), batch_size=50, **scoring(),
            )  # fmt: skip
            return ["long-form-QA/train_ppo.py", *flags]

        return Stage(f"answers of {name}", f"generations/{name}.json", words)

    def inspect() -> list[str]:
        flags = flag_words(
            task_type="qa", generations=at("generations/hierarchical.json"), examples=files["test_file"], limit=3,
            html=at("inspection.html"), policy_ckpt=at("sft"), **recipe("hierarchical"), **scoring(),
        )  # fmt: skip
        return ["eval/inspect_rewards.py", *flags]

    def compare() -> list[str]:
        return ["eval/eval_compare.py", *flag_words(generations_dir=at("generations"), task_type="qa")]

    return [
        Stage("untrained base models", "base", base_models),
        Stage("supervised policy", "sft", sft),
        reward_model("relevance", "rel_rm", epochs=3, batch_size=8),
        reward_model("factuality", "fact_rm", epochs=1, batch_size=4),
        reward_model("completeness", "comp_rm", epochs=1, batch_size=4, most_steps=30),
        Stage("holistic reward model", "holistic", holistic),
        Stage("scale of holistic score and length", "calibration.json", calibration),
        ppo("hierarchical"),
        ppo("holistic_only"),
        plots(work),
        test("sft", "sft"),
        test("hierarchical", "runs/hierarchical"),
        test("holistic_only", "runs/holistic_only"),
        Stage("rewards token by token", "inspection.html", inspect),
        Stage("comparison", "generations_results/eval-results.json", compare),
    ]


# --- what came out ---------------------------------------------------------------------------------------------------


def reward_model_table(work: Path) -> Table:
    """Each reward model beside what needs no model."""
    rows = []
    for name, folder in (
        ("relevance", "reward_models/rel_rm"),
        ("factuality", "reward_models/fact_rm"),
        ("completeness", "reward_models/comp_rm"),
        ("holistic", "holistic"),
    ):
        dev = json.loads((work / folder / "metrics.json").read_text())["dev"]
        if "pairwise_accuracy" in dev:
            count, accuracy, baseline, area = dev["pairs"], dev["pairwise_accuracy"], pair_baseline(dev), None
        else:
            count, accuracy, baseline, area = dev["units"], dev["accuracy"], dev["baseline_accuracy"], dev["auroc"]
        rows.append((name, str(count), f"{accuracy:.3f}", f"{baseline:.3f}", "-" if area is None else f"{area:.3f}"))
    return plain_table(
        "Reward models",
        ("reward model", "dev examples", "accuracy", "baseline", "AUROC"),
        rows,
        "baseline: the most frequent class; for pairs the best of 0.5, `longer wins` and `shorter wins`",
    )


def gate_line(work: Path) -> str:
    """What the hierarchical run's gate and its aspect did, from its log."""
    steps = training_rows(work / "runs/hierarchical")
    gate = statistics.mean(row["gate_rate"] for row in steps)
    rates = [row["relevance_rate"] for row in steps]
    return (
        f"hierarchical PPO, {len(steps)} steps: {gate:.0%} of the answers passed the gate; "
        f"the relevance rate per step lay between {min(rates):.2f} and {max(rates):.2f}"
    )


def qa_summary(work: Path) -> list[Table | str]:
    """Tables and paragraphs."""
    words = """\
What this shows: every part works together, from human feedback to reward models, to PPO, to the comparison.
What it cannot show: that hierarchical rewards are better. The policy has under two million parameters and saw 200
questions, so its answers are word salad or stock phrases; reward models of this size sit near their baselines (the
table says how near); a few PPO steps move little; and 50 test questions leave wide error bars. Differences between
the rows above are noise unless a longer run repeats them. With published checkpoints the same commands apply."""
    generations = read_policies(work)
    return [
        reward_model_table(work),
        policy_table(generations),
        one_answer_each(generations, "one test question", lambda query: query.split(" context:")[0]),
        gate_line(work),
        words,
        what_to_look_at(work),
    ]
