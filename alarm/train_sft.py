"""Supervised start of any task: fine-tune a policy on its prompts and answers."""

from __future__ import annotations

from .common.errors import report_user_errors
from .learning import sft
from .tasks.find import add_task_flag, task_of


@report_user_errors
def main(argv: list[str] | None = None) -> None:
    task = task_of(argv)
    sft.run_sft(task, sft.parse_args(task, __doc__, argv, add_task_flag))


if __name__ == "__main__":
    main()
