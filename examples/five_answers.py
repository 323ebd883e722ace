"""What every combiner pays for five answers to one question. Prints the tables of docs/combiners.md.

    python examples/five_answers.py

An answer is its holistic score h and one value for each of its sentences: 0.5 if it is true, -0.5 if not (the
factuality rewards of long-form QA).
"""

import torch

from alarm.combiners import COMBINERS
from alarm.recipe import RewardRecipe
from alarm.rewards import combine
from alarm.types import Measured, TokenScore

ANSWERS = {  # name -> h, true sentences, wrong sentences
    "good": (1.2, 3, 0),
    "good, one error": (1.0, 2, 1),
    "smooth but wrong": (1.5, 0, 3),
    "long and hollow": (-0.3, 8, 0),
    "short, off topic": (-1.5, 1, 0),
}


def measured() -> Measured:
    counts = [true + wrong for _, true, wrong in ANSWERS.values()]
    values = [torch.tensor([0.5] * true + [-0.5] * wrong, dtype=torch.float64) for _, true, wrong in ANSWERS.values()]
    facts = TokenScore([torch.arange(count) for count in counts], values, {}, [None] * len(counts), best=0.5)
    h = torch.tensor([h for h, _, _ in ANSWERS.values()], dtype=torch.float64)
    return Measured(counts, torch.zeros(len(counts), dtype=torch.bool), h, {"facts": facts})


def rewards(name: str, shaping: str) -> list[float]:
    """The whole reward of each answer; w_h = w_facts = 1, threshold 0.6."""
    recipe = RewardRecipe(name, 0.6, 1.0, {"facts": 1.0}, shaping=shaping)
    groups = torch.zeros(len(ANSWERS), dtype=torch.long)
    return [row.double().sum().item() for row in combine(measured(), recipe, groups).rewards]


def table(shaping: str) -> str:
    """Markdown."""
    lines = ["| " + " | ".join([f"shaping {shaping}", *ANSWERS]) + " |", "| --- |" + " ---: |" * len(ANSWERS)]
    for name in COMBINERS:
        lines.append("| " + " | ".join([f"`{name}`", *(f"{x:.2f}" for x in rewards(name, shaping))]) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table("sigmoid"), table("centred"), sep="\n\n")
