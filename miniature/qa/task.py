"""Long-form QA over the invented encyclopedia, as a task: the paper's aspects, and the true quality beside them.

    python -m alarm.train_ppo --task miniature/qa/task.py ...

`oracle` and its parts are columns of every file, so that a run can be judged by the truth. Nothing is paid for them.
"""

import sys
from dataclasses import replace
from pathlib import Path

from alarm import Aspect, Metric
from alarm.tasks.qa.spec import TASK as QA

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:  # a script of another folder reads this file
    sys.path.append(str(ROOT))

from miniature.qa.oracle import judge_row  # noqa: E402


def held_out(part):
    """An aspect that is a part of the true quality. It is measured, never paid."""

    def score(prompts, answers, rows):
        return [getattr(judge_row(row, answer), part) for answer, row in zip(answers, rows, strict=True)]

    return score


ORACLE = [
    Aspect(name, held_out(part), metrics=[Metric(name, ends=(0, 1), no_aspect="held out: it is the truth")])
    for name, part in {
        "oracle": "total",
        "oracle_relevance": "relevance",
        "oracle_factuality": "factuality",
        "oracle_completeness": "completeness",
    }.items()
]

# prompts have up to about 100 words, correct answers up to 40
TASK = replace(
    QA,
    name="miniature_qa",
    aspects=[*QA.aspects, *ORACLE],
    max_input_len=128,
    max_generated_len=64,
    columns=(),
    paper={},
)
