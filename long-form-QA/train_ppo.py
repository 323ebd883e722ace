"""Train a policy on long-form QA with hierarchical rewards (PPO), or generate and score answers with --test."""

from __future__ import annotations

import argparse

from alarm.common.errors import report_user_errors
from alarm.tasks.qa.spec import TASK
from alarm.training import main as training


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    return training.parse_args(TASK, __doc__, argv)


@report_user_errors
def main(argv: list[str] | None = None) -> None:
    training.run_task(TASK, parse_args(argv))


if __name__ == "__main__":
    main()
