"""The quickstart's stages for machine translation, and what its summary says of them."""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

from alarm.common.console import Table, plain_table
from alarm.common.errors import UserError
from alarm.tasks.mt.grammar.server import find_installation
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

DATA = ROOT / "quickstart" / "data" / "mt"
LENGTH = 32  # tokens of a prompt, and of a translation: the sample's sentences have at most nine words
SFT_EPOCHS, HOLISTIC_STEPS, PPO_STEPS = 3, 400, 12
POLICIES = {"sft": "sft", "hierarchical": "runs/hierarchical", "holistic_only": "runs/holistic_only"}


def grammar_backend() -> str:
    """The real LanguageTool if it is installed; else the stand-in, with a loud warning."""
    try:
        find_installation()
    except UserError as missing:
        line = "!" * 100
        print(f"{line}\nGRAMMAR STAND-IN: {missing}\nThis quickstart goes on with --grammar_backend rules.\n{line}")
        return "rules"
    return "languagetool"


def mt_stages(args: argparse.Namespace, work: Path) -> list[Stage]:
    """`args`: data_dir (None: the shipped sample), steps, seed."""
    data = Path(args.data_dir or DATA)
    files = {f"{split}_file": short(data / f"{split}.jsonl") for split in ("train", "dev", "test")}
    train_dev = {name: files[name] for name in ("train_file", "dev_file")}
    common = {"seed": args.seed, "report_to": "none"}
    backend = grammar_backend()

    def at(name: str) -> str:
        return short(work / name)

    def steps(number: int) -> int:
        return min(number, args.steps or number)

    def pairs() -> list[str]:
        return ["quickstart/make_mt_pairs.py", *flag_words(**train_dev, save_dir=at("pairs"), seed=args.seed)]

    def base_models() -> list[str]:
        flags = flag_words(
            train_file=at("pairs/text.json"), save_dir=at("base"), vocab_size=2000, policy_size=128, seed=args.seed
        )
        return ["quickstart/make_base_models.py", *flags]

    def sft() -> list[str]:
        flags = flag_words(
            model_path=at("base/t5"), **train_dev, save_dir=at("sft"), max_len=LENGTH, num_epochs=SFT_EPOCHS,
            batch_size=16, lr=4e-3, max_steps=args.steps, **common,
        )  # fmt: skip
        return ["MT/train_sft.py", *flags]

    def measure() -> list[str]:
        flags = flag_words(
            policy_ckpt=at("sft"), test_file=files["test_file"], max_len=LENGTH, dtype="float32",
            output=at("sft_scores.json"), overwrite=True,
        )  # fmt: skip
        return ["MT/eval_sft.py", *flags]

    def holistic() -> list[str]:
        flags = flag_words(
            model_path=at("base/llama"), train_file=at("pairs/train.jsonl"), dev_file=at("pairs/dev.jsonl"),
            save_dir=at("holistic"), batch_size=16, lr=2e-3, max_length=128, max_steps=steps(HOLISTIC_STEPS),
            **common,
        )  # fmt: skip
        return ["-m", "alarm.train_holistic", *flags]

    def calibration() -> list[str]:
        flags = flag_words(
            task="mt", policy_ckpt=at("sft"), prompts=files["dev_file"], rewards="holistic,length",
            holistic_model=at("holistic"), max_input_len=LENGTH, max_generated_len=LENGTH, batch_size=100,
            dtype="float32", seed=args.seed, save_path=at("calibration.json"),
        )  # fmt: skip
        return ["-m", "alarm.calibrate", *flags]

    def scoring() -> dict:
        """What every train_ppo.py takes: the models, and the constants that fit their scores."""
        return {
            "holistic_model": at("holistic"),
            "calibration": at("calibration.json"),
            # the paper's 0.5 lies beyond almost all scores of this small model, which lean to the left
            "threshold_quantile": 0.5,
            "grammar_backend": backend,
            "max_len": LENGTH,
            "dtype": "float32",
            "seed": args.seed,
        }

    def recipe(reward_type: str) -> dict:
        return {"reward_type": reward_type, "sigmoid_shaping": True, "w_read": 0, "w_grammar": 1, "w_confidence": 0}

    def test(name: str) -> Stage:
        def words() -> list[str]:
            flags = flag_words(
                test=True, test_do_sample=True, policy_ckpt=at(POLICIES[name]), test_file=files["test_file"],
                save_dir=at(f"generations/{name}.json"), batch_size=100, **scoring(),
            )  # fmt: skip
            return ["MT/train_ppo.py", *flags]

        return Stage(f"translations of {name}", f"generations/{name}.json", words)

    def ppo(reward_type: str) -> Stage:
        def words() -> list[str]:
            flags = flag_words(
                policy_ckpt=at("sft"), **train_dev, save_dir=at(f"runs/{reward_type}"), resume=True,
                **recipe(reward_type), **scoring(), batch_size=32, mini_batch_size=16, gradient_accumulation_steps=2,
                max_steps=steps(PPO_STEPS), eval_interval=0, checkpoint_interval=4, report_to="none",
            )  # fmt: skip
            return ["MT/train_ppo.py", *flags]

        return Stage(f"PPO, {reward_type}", f"runs/{reward_type}", words, resumable=True)

    def inspect() -> list[str]:
        flags = flag_words(
            task_type="mt", generations=at("generations/hierarchical.json"), limit=5, html=at("inspection.html"),
            policy_ckpt=at("sft"), **recipe("hierarchical"), **scoring(),
        )  # fmt: skip
        return ["eval/inspect_rewards.py", *flags]

    def compare() -> list[str]:
        return ["eval/eval_compare.py", *flag_words(generations_dir=at("generations"), task_type="mt")]

    return [
        Stage("preferences from the pairs", "pairs", pairs),
        Stage("untrained base models", "base", base_models),
        Stage("supervised policy", "sft", sft),
        Stage("its translation scores", "sft_scores.json", measure),
        Stage("holistic reward model", "holistic", holistic),
        Stage("scale of holistic score and length", "calibration.json", calibration),
        ppo("hierarchical"),
        ppo("holistic_only"),
        plots(work),
        *(test(name) for name in POLICIES),
        Stage("rewards token by token", "inspection.html", inspect),
        Stage("comparison", "generations_results/eval-results.json", compare),
    ]


# --- what came out ---------------------------------------------------------------------------------------------------


def score_table(work: Path) -> Table:
    """How good the supervised policy is, beside the references."""
    scores = json.loads((work / "sft_scores.json").read_text())["scores"]
    columns = list(scores["translations"])
    rows = [(what, *(f"{row[name]:.2f}" if name in row else "" for name in columns)) for what, row in scores.items()]
    return plain_table("Supervised policy", ("greedy, test file", *columns), rows)


def holistic_line(work: Path) -> str:
    dev = json.loads((work / "holistic/metrics.json").read_text())["dev"]
    return (
        f"holistic reward model: right on {100 * dev['pairwise_accuracy']:.1f}% of {dev['pairs']} dev pairs\n"
        f"(the best of chance, `longer wins` and `shorter wins`: {100 * pair_baseline(dev):.1f}%)"
    )


def training_line(work: Path, name: str) -> str:
    """The start and the end of a run, and how often the gate let the grammar reward through."""
    rows = training_rows(work / f"runs/{name}")
    third = max(1, len(rows) // 3)
    parts = []
    for metric in ("holistic_reward", "error_rate", "gate_rate", "kl"):
        values = [row[metric] for row in rows if row.get(metric) is not None]
        if values:
            first, last = statistics.mean(values[:third]), statistics.mean(values[-third:])
            parts.append(f"{metric} {first:.3f} -> {last:.3f}")
    return f"{name}, {len(rows)} steps, mean of the first and of the last third: {', '.join(parts)}"


def mt_summary(work: Path) -> list[Table | str]:
    """Tables and paragraphs."""
    words = """\
What this shows: every part works together, from pairs to a policy, to PPO with grammar errors in the reward, to the
comparison. What it cannot show: that hierarchical rewards are better, or translation at all. The policy has about a
million parameters and saw 6,500 short sentences for a few minutes: it writes English words that hardly depend on the
Spanish. The holistic model learned from references against damaged or foreign ones, which is no human preference. A few
PPO steps move little, and 200 test sentences leave wide error bars. The same commands run published checkpoints."""
    generations = read_policies(work)
    return [
        score_table(work),
        holistic_line(work),
        policy_table(generations),
        one_answer_each(generations, "one of them, sampled"),
        "\n".join(training_line(work, name) for name in ("hierarchical", "holistic_only")),
        words,
        what_to_look_at(work),
    ]
