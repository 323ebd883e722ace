"""Train a policy on Spanish-English translation with hierarchical rewards (PPO), or translate and score with --test."""

from __future__ import annotations

import argparse

from alarm.common.errors import report_user_errors
from alarm.tasks.mt.spec import TASK
from alarm.training import main as training


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    return training.parse_args(TASK, __doc__, argv)


@report_user_errors
def main(argv: list[str] | None = None) -> None:
    training.run_task(TASK, parse_args(argv))


if __name__ == "__main__":
    main()
