"""Supervised start of long-form QA: fine-tune T5 on questions with their reference answers."""

from __future__ import annotations

import argparse

from alarm.common.errors import report_user_errors
from alarm.learning import sft
from alarm.tasks.qa.spec import TASK


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    return sft.parse_args(TASK, __doc__, argv)


@report_user_errors
def main(argv: list[str] | None = None) -> None:
    sft.run_sft(TASK, parse_args(argv))


if __name__ == "__main__":
    main()
