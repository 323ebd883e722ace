"""The demonstrations of a small world as its preference model reads them: what mt/reader.py and qa/reader.py hold.

A preference model that starts from a language model of this text orders translations better (mt/TUNING.md).
"""

from __future__ import annotations

from dataclasses import replace

from alarm.api import Task
from alarm.models.holistic import PROMPT_PART


def as_read(task: Task, max_input_len: int) -> Task:
    """The task with prompts that read as the first part of a preference model's input."""
    return replace(
        task,
        name=f"{task.name}_reader",
        prompt=lambda row: PROMPT_PART.format(prompt=row["text"]) + "\nAssistant:",
        max_input_len=max_input_len,
    )
