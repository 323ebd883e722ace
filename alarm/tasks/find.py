"""A task by its name, or by the file that defines it."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import sys
from dataclasses import replace
from pathlib import Path

from ..api import Task
from ..common.errors import UserError
from ..common.flags import parser

BUILT_IN = {"qa": "alarm.tasks.qa.spec", "mt": "alarm.tasks.mt.spec"}


def find_task(name: str) -> Task:
    """A built-in task, or TASK of the Python file at `name`.

    Raises UserError, naming the file, for a file that is missing, that raises at import, and that defines no TASK.
    """
    if name in BUILT_IN:
        return importlib.import_module(BUILT_IN[name]).TASK
    path = Path(name)
    if path.suffix != ".py":
        raise UserError(f"{name!r} is no task; give {', '.join(BUILT_IN)}, or the path of a task's .py file")
    if not path.is_file():
        raise UserError(f"the task file {path} does not exist; give {', '.join(BUILT_IN)}, or the path of a .py file")
    module_name = f"alarm_task_{path.stem}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # dataclasses and pickle look a class's module up there
    try:
        spec.loader.exec_module(module)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except Exception as error:
        raise UserError(f"{path} cannot be imported ({type(error).__name__}: {error}); fix it") from error
    task = getattr(module, "TASK", None)
    if not isinstance(task, Task):
        found = "no TASK" if task is None else f"a TASK that is {type(task).__name__}"
        raise UserError(f"{path} defines {found}; write TASK = Task(...) with `from alarm import Task`")
    return replace(task, source=str(path))


def split_task(argv: list[str] | None, description: str, flag: str = "--task") -> tuple[Task, list[str]]:
    """The task that `flag` names, and the other words of a command line. Without it, --help or an error shows it."""
    argv = sys.argv[1:] if argv is None else argv
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument(flag, dest="task")
    found, rest = first.parse_known_args(argv)
    if found.task is None:
        shown = parser(description)
        shown.add_argument(
            flag,
            required=True,
            help=f"{', '.join(BUILT_IN)}, or the .py file of a task; --help beside it shows the task's flags",
        )
        shown.parse_args(argv)
    return find_task(found.task), rest
