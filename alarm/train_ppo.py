"""Train a policy on any task with hierarchical rewards (PPO), or answer and score its prompts with --test."""

from __future__ import annotations

from .common.errors import report_user_errors
from .tasks.find import split_task
from .training import main as training


@report_user_errors
def main(argv: list[str] | None = None) -> None:
    task, rest = split_task(argv, __doc__)
    training.run_task(task, training.parse_args(task, __doc__, rest))


if __name__ == "__main__":
    main()
