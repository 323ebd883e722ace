"""LanguageTool's HTTP API: one request, what the answer says, and when to wait.

LanguageTool is spoken to through its documented POST /v2/check rather than through language-tool-python's client,
which keeps state in class attributes while it reads matches (wrong under concurrent calls), leaves the length of a
match in UTF-16 units, and raises in every caller when the server dies.
"""

from __future__ import annotations

import json
import logging
import math
import re
import time

from ....common.retry_after import retry_after
from .matches import STAND_IN, GrammarServiceError, Match

logger = logging.getLogger(__name__)

LANGUAGE = "en-US"
PAUSE = 0.5  # seconds before the first new attempt; doubles with each
LONGEST_WAIT = 300.0  # seconds that a server may ask to wait: after ten minutes NCCL ends the processes that wait too


class ServerFailure(Exception):
    """One failed attempt. `lost`: the server did not answer at all.

    `limited`: it has had too many requests. `wait`: seconds that it asks to wait, None if it does not.
    """

    def __init__(self, reason: str, lost: bool = False, limited: bool = False, wait: float | None = None):
        super().__init__(" ".join(reason.split())[:500])
        self.lost = lost
        self.limited = limited
        self.wait = wait


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


def open_session(own: bool, in_flight: int):
    """A requests.Session for `in_flight` requests at a time. own: the server is this run's."""
    import requests

    session = requests.Session()
    session.trust_env = not own  # a proxy of the environment must not come between us and our own server
    session.mount("http://", requests.adapters.HTTPAdapter(pool_maxsize=in_flight))
    return session


def ask(session, url: str, text: str, timeout: float) -> dict:
    """The server's decoded answer about one text. Raises ServerFailure for any other."""
    import requests

    # a lone surrogate has no UTF-8; its stand-in is one UTF-16 unit as well
    text = re.sub("[\ud800-\udfff]", "\ufffd", text)
    try:
        response = session.post(f"{url}/v2/check", data={"language": LANGUAGE, "text": text}, timeout=timeout)
    except requests.Timeout:
        raise ServerFailure(f"no answer within {timeout:g} s", lost=True) from None
    except requests.RequestException as error:
        cause = re.search(r"\[Errno -?\d+\] ([\w ]+)", str(error))
        raise ServerFailure(f"no answer ({cause[1] if cause else type(error).__name__})", lost=True) from None
    if response.status_code != 200:
        reason = f"it answered {response.status_code} ({response.text[:200]}) to {text[:60]!r}"
        limited, wait = response.status_code == 429, None
        if limited or response.status_code == 503:
            wait = retry_after(response.headers, time.time(), longest=math.inf)
        raise ServerFailure(reason, limited=limited, wait=wait)
    try:
        return response.json()
    except ValueError:
        raise ServerFailure(f"its answer is not JSON: {response.text[:100]!r}") from None


class Patience:
    """Waits for a server that asks for it, and ends the run once that takes too long.

    Args:
        longest: seconds to wait in all.
        pause: seconds to wait at least; doubles with each wait, up to 30. LanguageTool itself names no time with a 429.
    """

    def __init__(self, longest: float, pause: float):
        self.longest = longest
        self.pause = pause
        self.waited = 0.0
        self._times = 0

    def asked(self, failure: ServerFailure) -> bool:
        """Whether the server asks to wait, rather than being broken."""
        return failure.limited or failure.wait is not None

    def wait(self, failure: ServerFailure) -> None:
        """Wait as the failure asks. Raises GrammarServiceError if that is longer than `longest` allows."""
        seconds = max(failure.wait or 0.0, min(self.pause * 2**self._times, 30))
        if self.waited + seconds > self.longest:
            raise GrammarServiceError(
                f"LanguageTool asks to wait {seconds:.0f} s, after {self.waited:.0f} s of waiting ({failure}); a run "
                f"waits {self.longest:.0f} s at most: go on later with --resume, give a server without such a limit by "
                f"--grammar_server, or {STAND_IN}"
            )
        logger.warning("LanguageTool asks to wait: the run goes on in %.0f s (%s)", seconds, failure)
        time.sleep(seconds)
        self.waited += seconds
        self._times += 1
