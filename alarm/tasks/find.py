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
    sys.path.insert(0, str(path.resolve().parent))  # it may import its neighbours
    try:
        spec.loader.exec_module(module)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except Exception as error:
        raise UserError(f"{path} cannot be imported ({type(error).__name__}: {error}); fix it") from error
    finally:
        sys.path.remove(str(path.resolve().parent))
    task = getattr(module, "TASK", None)
    if not isinstance(task, Task):
        found = "no TASK" if task is None else f"a TASK that is {type(task).__name__}"
        raise UserError(f"{path} defines {found}; write TASK = Task(...) with `from alarm import Task`")
    return replace(task, source=str(path))


def task_of(argv: list[str] | None, flag: str = "--task") -> Task:
    """The task that `flag` names on a command line, so that the parser of all flags can have the task's own.

    A task without aspects if there is none: the parser of `add_task_flag` then shows --help or the error.
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    first.add_argument(flag, dest="task")
    try:
        name = first.parse_known_args(argv)[0].task
    except argparse.ArgumentError:
        name = None
    return Task("none", prompt=str, aspects=()) if name is None else find_task(name)


def add_task_flag(flags: argparse.ArgumentParser, flag: str = "--task", required: bool = True) -> None:
    flags.add_argument(
        flag,
        required=required,
        help=f"{', '.join(BUILT_IN)}, or the .py file of a task; --help beside it shows the task's own flags",
    )
