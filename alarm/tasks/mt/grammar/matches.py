"""What every grammar checker finds, and what each of them does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from ....common.errors import ServiceError

STAND_IN = "use the offline stand-in --grammar_backend rules"


class GrammarServiceError(ServiceError):
    """The grammar service failed again and again: save what there is and stop."""


@dataclass(frozen=True)
class Match:
    """One error. `start`, `end`: characters (code points) of the text, end excluded."""

    start: int
    end: int
    rule: str
    message: str


class Checker(Protocol):
    """What finds grammar errors. `counts` says what happened so far."""

    counts: dict[str, int]

    def check(self, texts: list[str]) -> list[list[Match]]:
        """The errors of each text, in its order."""

    def close(self) -> None:
        """Let go of what the checker holds."""
