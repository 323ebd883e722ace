"""Train a policy on any task with hierarchical rewards (PPO), or answer and score its prompts with --test."""

from __future__ import annotations

from .common.errors import report_user_errors
from .tasks.find import add_task_flag, task_of
from .training import main as training


@report_user_errors
def main(argv: list[str] | None = None) -> None:
    task = task_of(argv)
    training.run_task(task, training.parse_args(task, __doc__, argv, add_task_flag))


if __name__ == "__main__":
    main()
