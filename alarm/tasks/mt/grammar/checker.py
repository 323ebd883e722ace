"""A grammar checker by its flags; texts through LanguageTool, several at a time, also if its server fails."""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence

from ....common.errors import UserError
from ....common.service import LONGEST_PAUSE, LONGEST_WAIT, PAUSE, ServerFailure, answer_all, open_session
from .matches import STAND_IN, Checker, GrammarServiceError, Match
from .protocol import ask, parse_matches, patience
from .rules import RulesChecker
from .server import LocalServer, RemoteServer, find_installation

logger = logging.getLogger(__name__)

BACKENDS = ("languagetool", "rules")
SLOWEST = 0.02  # seconds a character: 10,000 question marks took 48 s on two busy cores


def make_checker(backend: str = "languagetool", server: str | None = None) -> Checker:
    """The checker that the flags --grammar_backend and --grammar_server ask for. Starts nothing before its first text.

    Raises UserError if it cannot work: no Java, no LanguageTool, no server at the URL.
    """
    if backend not in BACKENDS:
        raise UserError(f"--grammar_backend {backend} is none of {', '.join(BACKENDS)}")
    if backend == "rules":
        if server is not None:
            raise UserError("--grammar_server goes with --grammar_backend languagetool; drop one of the two")
        return RulesChecker()
    if server is not None:
        remote = RemoteServer(server)
        remote.check()
        return LanguageToolChecker(remote)
    return LanguageToolChecker(LocalServer(find_installation()))


class LanguageToolChecker:
    """Checks texts with several requests in flight, and again what a failing server left unanswered.

    Args:
        server: LocalServer or RemoteServer.
        in_flight: requests at a time.
        cache_size: texts whose matches are remembered, the least recently used forgotten first.
        timeout: seconds after which a request counts as hanging; long texts get more (SLOWEST a character).
        max_failures: rounds in a row without one text answered, after which check() gives up.
        pause: seconds before the first new attempt; doubles with each.
        longest_wait: seconds, without one text answered, that the server may ask to wait; a wait is no failure.

    `counts`: texts = empty (no request: no error) + cached + checked; failures (rounds that ended early), restarts.
    Threads that call check() take turns.
    """

    def __init__(
        self,
        server: LocalServer | RemoteServer,
        in_flight: int = 8,
        cache_size: int = 100_000,
        timeout: float = 120.0,
        max_failures: int = 6,
        pause: float = PAUSE,
        longest_wait: float = LONGEST_WAIT,
    ):
        self.server = server
        self.in_flight = in_flight
        self.cache_size = cache_size
        self.timeout = timeout
        self.max_failures = max_failures
        self.pause = pause
        self.longest_wait = longest_wait
        self.counts = dict.fromkeys(("texts", "empty", "cached", "checked", "failures", "restarts"), 0)
        self._cache: OrderedDict[str, list[Match]] = OrderedDict()
        self._session = None
        self._turn = threading.Lock()
        self._closed = threading.Event()

    def check(self, texts: list[str]) -> list[list[Match]]:
        """The errors of each text, in its order. Every text is answered, or GrammarServiceError is raised."""
        with self._turn:
            self._closed.clear()
            return self._check(texts)

    def _check(self, texts: list[str]) -> list[list[Match]]:
        found: dict[str, list[Match]] = {}
        for text in texts:
            if not text.strip():
                found[text] = []
                self.counts["empty"] += 1
            elif text in self._cache:
                self._cache.move_to_end(text)
                found[text] = self._cache[text]
        # the longest first, so that none is left to be waited for alone
        waiting = sorted({text for text in texts if text not in found}, key=lambda text: (-len(text), text))
        self.counts["texts"] += len(texts)
        self.counts["checked"] += len(waiting)
        done: dict[str, list[Match]] = {}
        times = {"longest": self.longest_wait, "pause": self.pause}
        try:
            answer_all(waiting, self._begin, self.in_flight, lambda: patience(**times), self._failed, done)
        finally:
            self._cache |= done
        found |= done
        while len(self._cache) > self.cache_size:
            self._cache.popitem(last=False)
        self.counts["cached"] = self.counts["texts"] - self.counts["empty"] - self.counts["checked"]
        return [list(found[text]) for text in texts]

    def close(self) -> None:
        """Let go of the server. Another thread's check() then ends without an answer."""
        self._closed.set()
        if self._session is not None:
            self._session.close()
            self._session = None
        self.server.close()

    def _begin(self) -> Callable[[str], list[Match]]:
        """What asks the server about a text. Raises ServerFailure if there is no server."""
        self._check_open()
        url = self.server.url()
        if self._session is None:
            self._session = open_session(self.server.own, self.in_flight)
        session = self._session

        def answer(text: str) -> list[Match]:
            self._check_open()
            return parse_matches(text, ask(session, url, text, self.timeout + len(text) * SLOWEST))

        return answer

    def _check_open(self) -> None:
        """Raise GrammarServiceError if another thread has closed the checker since check() began."""
        if self._closed.is_set():  # after ^C: a new server would have no user
            self.close()
            raise GrammarServiceError("the grammar checker was closed while it checked")

    def _failed(self, failure: ServerFailure, failures: int, waiting: Sequence[str]) -> None:
        """Count a failure, report it, and recover from it; give up after too many."""
        self._check_open()
        self.counts["failures"] += 1
        if failures >= self.max_failures:
            raise GrammarServiceError(
                f"LanguageTool failed {failures} times in a row, last: {failure}; fix it and go on with --resume, "
                f"or {STAND_IN}"
            )
        logger.warning(
            "LanguageTool failed (%d in a row): %s; %d texts are checked again", failures, failure, len(waiting)
        )
        time.sleep(min(self.pause * 2 ** (failures - 1), LONGEST_PAUSE))
        # an error page alone is worth a second try before the server is replaced
        if self.server.own and (failure.lost or failures > 1):
            try:
                self.counts["restarts"] += self.server.recover()
            except ServerFailure as again:
                self._failed(again, failures + 1, waiting)
