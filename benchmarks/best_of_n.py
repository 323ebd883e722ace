"""How long best-of-n takes: a simulated file of samples, and thousands of settings of all combiners. Prints a table.

    python benchmarks/best_of_n.py

The last line pays the same answers through `alarm.rewards.combine`, token by token as in training, for a few settings;
its time is that of all settings at this rate.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from alarm.common.console import plain_table, print_table
from alarm.common.errors import report_user_errors
from alarm.common.files import write_rows
from alarm.common.flags import parser, positive_int, seed_value
from alarm.evaluation.best_of_n import best_of_n as bench
from alarm.evaluation.best_of_n.ranking import Ranking
from alarm.evaluation.best_of_n.samples import read_samples
from alarm.evaluation.best_of_n.settings import Payer, grid, listed
from alarm.rewards import combine
from alarm.types import Measured, TokenScore

LISTS = """--threshold_quantile 0.1 0.3 0.5 0.7 0.9 --w_rel 0 0.5 1 2 --w_fact 0.5 1 --w_comp 0 1
    --holistic_reward_weight 1 3 --shaping none centred sigmoid --gate_temperature 0.1 0.5
    --variance_cost 0.1 1""".split()


def simulated(prompts: int, samples: int, seed: int) -> list[dict]:
    """Rows as --num_samples writes them: a hidden skill makes units right, long answers please the holistic model."""
    random = np.random.default_rng(seed)
    rows = []
    for index in range(prompts):
        level = random.normal()
        for sample in range(samples):
            skill, units = random.normal(), int(random.integers(1, 8))
            right = random.random(units) < 1 / (1 + np.exp(-skill))
            facts = random.random(units) < 1 / (1 + np.exp(-0.5 * skill))
            parts = {
                "relevance": {"values": np.where(right, 0.3, -0.3).tolist(), "best": 0.3},
                "factuality": {"values": np.where(facts, 0.5, -0.5).tolist(), "best": 0.5},
                "completeness": {"values": [0.3 * (units / 4 - 1 + random.normal())], "best": 0.0},
            }
            raw = level + skill + 0.3 * units + random.normal()
            rows.append(
                {"index": index, "sample": sample, "query": f"question {index}", "generation": "words " * 6 * units}
                | {"raw_holistic": raw, "response_length": 6 * units + 1, "oracle": skill, "aspects": parts}
            )
    return rows


def through_combine(payer: Payer, recipes: list) -> float:
    """Seconds for the recipes through token rewards."""
    lengths = [int(length) for length in payer.samples.columns["response_length"]]
    aspects = {
        name: TokenScore([torch.arange(len(row)) for row in rows], rows, {}, [], payer.samples.best[name])
        for name, rows in payer.values.items()
    }
    measured = Measured(lengths, payer.too_short, torch.from_numpy(payer.samples.raw), aspects)
    started = time.perf_counter()
    for recipe in recipes:
        combine(measured, recipe, payer.groups)
    return time.perf_counter() - started


@report_user_errors
def main(argv: list[str] | None = None) -> None:
    flags = parser(__doc__.split("\n")[0])
    flags.add_argument("--prompts", type=positive_int, default=500)
    flags.add_argument("--samples", type=positive_int, default=16, help="answers to each prompt")
    flags.add_argument("--threads", type=positive_int, default=1, help="CPU threads of torch")
    flags.add_argument("--seed", type=seed_value, default=0)
    flags.add_argument("--save_path", help="JSON file to which the command writes, with a figure beside it")
    args = flags.parse_args(argv)
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "samples.json"
        write_rows(file, simulated(args.prompts, args.samples, args.seed))
        words = ["--task", "qa", "--generations", str(file), "--quality", "oracle", "--ultra_mean", "1.2"]
        words += ["--ultra_std", "1.8", "--save_path", args.save_path or str(Path(folder) / "out.json"), *LISTS]

        times = {}
        started = time.perf_counter()
        samples = read_samples(file)
        times["read the file"] = time.perf_counter() - started
        asked, payer = bench.parse_args(words), Payer(samples)
        scales = bench.scales_of(asked, payer, None)
        weights = {aspect.name: getattr(asked, aspect.flag) for aspect in asked.task.aspects}
        thresholds = bench.thresholds_of(asked, payer, scales)
        settings = grid(
            asked.task, bench.chosen_combiners(asked), listed(asked, asked.task), weights, scales, thresholds
        )
        started = time.perf_counter()
        rewards = np.stack([payer.pay(setting.recipe) for setting in settings])
        times["pay all settings"] = time.perf_counter() - started
        started = time.perf_counter()
        for start in range(0, len(settings), 200):
            Ranking(rewards[start : start + 200], samples.sizes).expected_best(samples.columns["oracle"], args.samples)
        times["rank and estimate"] = time.perf_counter() - started
        started = time.perf_counter()
        bench.main([*words, "--dev_share", "0.5"])
        times["the whole command"] = time.perf_counter() - started
        few = settings[:: len(settings) // 5][:5]
        rate = through_combine(payer, [setting.recipe for setting in few]) / len(few)
        times["through token rewards"] = rate * len(settings)
    title = f"{args.prompts} prompts, {args.samples} answers each, {len(settings)} settings, {args.threads} thread(s)"
    print_table(plain_table(title, ("what", "seconds"), [(what, f"{t:.1f}") for what, t in times.items()]))


if __name__ == "__main__":
    main()
