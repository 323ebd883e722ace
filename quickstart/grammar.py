"""Which grammar checker a quickstart has."""

from __future__ import annotations

from alarm.common.errors import UserError
from alarm.tasks.mt.grammar.server import find_installation


def grammar_backend(wanted: str = "languagetool") -> str:
    """The real LanguageTool if it is wanted and installed; else the stand-in, said loudly."""
    why = "the settings of this world were chosen with the stand-in"
    if wanted == "languagetool":
        try:
            find_installation()
            return wanted
        except UserError as missing:
            why = str(missing)
    line = "!" * 100
    print(f"{line}\nGRAMMAR STAND-IN, no LanguageTool: {why}\nThis quickstart has --grammar_backend rules.\n{line}")
    return "rules"
