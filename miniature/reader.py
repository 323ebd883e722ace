"""The demonstrations of a small world as its preference model reads them: what mt/reader.py and qa/reader.py hold.

A preference model that starts from a language model of this text orders answers better (TUNING.md of each world).
"""

from __future__ import annotations

from dataclasses import replace

from alarm.api import Task
from alarm.models.holistic import ANSWER_PART, PROMPT_PART


def as_read(task: Task, max_input_len: int) -> Task:
    """The task with prompts that read as the first part of a preference model's input. Answers are learnt."""
    return replace(
        task,
        name=f"{task.name}_reader",
        prompt=lambda row: PROMPT_PART.format(prompt=row["text"]) + "\nAssistant:",
        max_input_len=max_input_len,
    )


def as_read_from(task: Task, mark: str, max_input_len: int, max_generated_len: int) -> Task:
    """The same text, of which all is learnt from the first `mark` of the prompt on: passages, then the answer."""

    def answers(row: dict) -> list[str]:
        found = task.answer(row)
        found = found if isinstance(found, list | tuple) else [found]
        behind = row["text"][row["text"].index(mark) :]
        return [behind + ANSWER_PART.format(answer=answer) for answer in found]

    return replace(
        task,
        name=f"{task.name}_reader",
        prompt=lambda row: PROMPT_PART.format(prompt=row["text"][: row["text"].index(mark)]),
        answer=answers,
        max_input_len=max_input_len,
        max_generated_len=max_generated_len,
    )
