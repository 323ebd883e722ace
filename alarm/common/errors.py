"""One clear line for the user's mistakes: exit code 2, no traceback."""

from __future__ import annotations

import errno
import functools
import os
import re
import sys
import traceback
from collections.abc import Callable

# what the machine refuses, rather than the code: no room, no permission, a file instead of a folder
_REFUSALS = {
    getattr(errno, name)
    for name in "ENOSPC EDQUOT EFBIG EROFS EACCES EPERM ENOTDIR EISDIR EEXIST ENOTEMPTY ENAMETOOLONG ELOOP".split()
}

# how long processes wait for each other, in the environment: neither torch nor accelerate reads such a variable
TIMEOUT = "ALARM_PROCESS_TIMEOUT"


class UserError(Exception):
    """Something the user can fix. The message is one line: what is wrong, and how to fix it."""


class ServiceError(UserError):
    """A service that the rewards need has failed for good. What was learnt so far is sound and can be saved."""


def report_user_errors(main: Callable[..., None]) -> Callable[..., None]:
    """Decorate a script's main(): a UserError becomes `error: ...` on stderr and exit code 2; ^C exits with 130.

    An OSError by which the machine refuses a file, such as a full disk, is reported in the same way. Every rank reports
    what it meets, above 0 as `error (rank 3): ...`: an error of one rank alone must not be lost. A process that fails
    because another one has ended or does not answer exits with 1 and one line. With ALARM_TRACEBACK=1 in the
    environment the traceback is printed before the line.
    """

    @functools.wraps(main)
    def wrapped(*args, **kwargs):
        try:
            return main(*args, **kwargs)
        except KeyboardInterrupt as interrupt:
            _report("interrupted", None, interrupt)
            sys.exit(130)
        except Exception as error:
            if line := str(error) if isinstance(error, UserError) else _refusal(error):
                _report("error", line, error)
                sys.exit(2)
            if line := _lost_peer(error):
                _report("error", line, error)
                sys.exit(1)
            raise

    return wrapped


def _report(kind: str, line: str | None, error: BaseException) -> None:
    if os.environ.get("ALARM_TRACEBACK", "") not in ("", "0"):
        for one in _chain(error):
            one.__suppress_context__ = False  # also what `from None` hides
        traceback.print_exception(error)
    rank = os.environ.get("RANK", "0")
    where = "" if rank == "0" else f" (rank {rank})"
    line = "" if line is None else ": " + " ".join(line.splitlines())
    print(f"{kind}{where}{line}", file=sys.stderr, flush=True)


def _chain(error: BaseException | None) -> list[BaseException]:
    """An error, what it was raised from or after, and so on."""
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found


def _lost_peer(error: Exception) -> str | None:
    """The line for a run of several processes that fails here because another one is gone (gloo's words), or None."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return None
    # an OSError with the same words is of another connection, such as that to a server
    for said in (str(one) for one in _chain(error) if isinstance(one, RuntimeError)):
        if "closed by peer" in said or "reset by peer" in said:
            return "another process of this run has ended; it reports why, unless it was killed"
        if timed_out := re.search(r"Timed out waiting (\d+)ms for (?:send|recv) operation", said):
            return (
                f"another process of this run has not answered for {int(timed_out[1]) / 1000:g} s; its machine or the "
                f"network to it may be down ({TIMEOUT}=SECONDS sets this time)"
            )
    return None


def _refusal(error: Exception) -> str | None:
    """The line for an error by which the machine refuses a file; None for any other error."""
    hint = "make room or give another place (ALARM_TRACEBACK=1 prints the traceback)"
    for one in _chain(error):
        if isinstance(one, OSError) and one.errno in _REFUSALS:
            name = "" if one.filename is None else f"{os.fsdecode(one.filename)}: "
            return f"{name}{one.strerror}; {hint}"
        # safetensors: OSErrors of Rust; torch.save: an assertion of its zip writer, without the reason
        if (number := re.search(r"\(os error (\d+)\)", str(one))) and int(number[1]) in _REFUSALS:
            return f"a file of weights cannot be written: {os.strerror(int(number[1]))}; {hint}"
        if isinstance(one, RuntimeError) and "inline_container" in str(one) and "unexpected pos" in str(one):
            return f"a file of weights cannot be written, is the disk full? {hint[0].upper()}{hint[1:]}"
    return None
