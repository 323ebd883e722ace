"""LanguageTool's HTTP API: one request, what the answer says, and when to wait.

LanguageTool is spoken to through its documented POST /v2/check rather than through language-tool-python's client,
which keeps state in class attributes while it reads matches (wrong under concurrent calls), leaves the length of a
match in UTF-16 units, and raises in every caller when the server dies.
"""

from __future__ import annotations

import json
import re

from ....common.service import Patience, ServerFailure, refusal, send
from .matches import STAND_IN, GrammarServiceError, Match

LANGUAGE = "en-US"


def parse_matches(text: str, answer: object) -> list[Match]:
    """The matches in a decoded /v2/check answer, their UTF-16 offsets turned into those of characters.

    A match may end behind the text by as much as the text has white space at its end: LanguageTool can count the end of
    a paragraph twice (its issue 11689). Such a match ends with the text.
    Raises ServerFailure if `answer` is not what the API documents for `text`.
    """
    # characters[u]: the character that holds UTF-16 unit u
    characters = [i for i, char in enumerate(text) for _ in range(2 if ord(char) > 0xFFFF else 1)]
    units = len(characters)
    characters.append(len(text))
    surplus = len(text) - len(text.rstrip())
    matches = []
    try:
        if answer.get("warnings", {}).get("incompleteResults"):
            raise ServerFailure("it checked the text only in part (a limit of the server)")
        for found in answer["matches"]:
            start, length = found["offset"], found["length"]
            if start < 0 or length < 0:
                raise IndexError
            if units < start + length <= units + surplus:
                length = units - start
            # a match that ends inside a surrogate pair takes the whole character
            end = characters[start + length - 1] + 1 if length else characters[start]
            matches.append(Match(characters[start], end, found["rule"]["id"], found["message"]))
    except (AttributeError, KeyError, TypeError, IndexError):
        raise ServerFailure(f"its answer is no list of matches: {json.dumps(answer)[:200]}") from None
    return matches


def ask(session, url: str, text: str, timeout: float) -> dict:
    """The server's decoded answer about one text. Raises ServerFailure for any other."""
    # a lone surrogate has no UTF-8; its stand-in is one UTF-16 unit as well
    text = re.sub("[\ud800-\udfff]", "\ufffd", text)
    data = {"language": LANGUAGE, "text": text}
    response = send(session, "POST", f"{url}/v2/check", timeout, data=data)
    if response.status_code != 200:
        raise refusal(response, f"it answered {response.status_code} ({response.text[:200]}) to {text[:60]!r}")
    try:
        return response.json()
    except ValueError:
        raise ServerFailure(f"its answer is not JSON: {response.text[:100]!r}") from None


def patience(**times) -> Patience:
    """For a LanguageTool that asks to wait. times: `longest` and `pause` of `Patience`."""
    ways_out = f"give a server without such a limit by --grammar_server, or {STAND_IN}"
    return Patience("LanguageTool", ways_out, GrammarServiceError, **times)
