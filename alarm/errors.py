"""One clear line for the user's mistakes: exit code 2, no traceback."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable


class UserError(Exception):
    """Something the user can mend. The message is one line: what is wrong, and how to mend it."""


class ServiceError(UserError):
    """A service that the rewards need has failed for good. What was learnt so far is sound and can be saved."""


def report_user_errors(main: Callable[..., None]) -> Callable[..., None]:
    """Decorate a script's main(): a UserError becomes `error: ...` on stderr and exit code 2; ^C exits with 130."""

    @functools.wraps(main)
    def wrapped(*args, **kwargs):
        try:
            return main(*args, **kwargs)
        except UserError as error:
            # every rank meets the same mistake; one of them says so
            if os.environ.get("RANK", "0") == "0":
                print(f"error: {error}", file=sys.stderr, flush=True)
            sys.exit(2)
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr, flush=True)
            sys.exit(130)

    return wrapped
