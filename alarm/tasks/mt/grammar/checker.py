"""A grammar checker by its flags; texts through LanguageTool, several at a time, also if its server fails."""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict

from ....common.errors import UserError
from ....common.threads import DaemonExecutor
from .matches import STAND_IN, Checker, GrammarServiceError, Match
from .protocol import LONGEST_WAIT, PAUSE, Patience, ServerFailure, ask, open_session, parse_matches
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
        failures, patience = 0, Patience(self.longest_wait, self.pause)
        while waiting:
            done, failure = self._try(waiting)
            if self._closed.is_set():  # by another thread, after ^C: a new server would have no user
                self.close()
                raise GrammarServiceError("the grammar checker was closed while it checked")
            found |= done
            for text, matches in done.items():
                self._cache[text] = matches
            waiting = [text for text in waiting if text not in done]
            if done:
                failures, patience = 0, Patience(self.longest_wait, self.pause)
            if failure is not None and patience.asked(failure):
                patience.wait(failure)
            elif failure is not None:
                failures += 1
                self._failed(failure, failures, waiting)
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

    def _try(self, texts: list[str]) -> tuple[dict[str, list[Match]], ServerFailure | None]:
        """Ask for every text until one request fails. -> what was answered, and the failure."""
        try:
            url = self.server.url()
        except ServerFailure as failure:
            return {}, failure
        if self._session is None:
            self._session = open_session(self.server.own, self.in_flight)
        stop = threading.Event()
        failures: list[ServerFailure] = []

        def answer(text: str) -> list[Match] | None:
            if stop.is_set() or self._closed.is_set():
                return None
            try:
                return parse_matches(text, ask(self._session, url, text, self.timeout + len(text) * SLOWEST))
            except ServerFailure as failure:
                failures.append(failure)
            except BaseException:
                stop.set()
                raise
            stop.set()
            return None

        with DaemonExecutor(self.in_flight) as pool:
            try:
                answers = list(pool.map(answer, texts))
            except BaseException:  # ^C: nobody waits for the requests in flight, the others are not begun
                stop.set()
                raise
        done = {text: matches for text, matches in zip(texts, answers, strict=True) if matches is not None}
        # several requests may have been refused: the longest wait is the one to keep
        return done, max(failures, key=lambda failure: failure.wait or 0.0, default=None)

    def _failed(self, failure: ServerFailure, failures: int, waiting: list[str]) -> None:
        """Count a failure, report it, and recover from it; give up after too many."""
        self.counts["failures"] += 1
        if failures >= self.max_failures:
            raise GrammarServiceError(
                f"LanguageTool failed {failures} times in a row, last: {failure}; fix it and go on with --resume, "
                f"or {STAND_IN}"
            )
        logger.warning(
            "LanguageTool failed (%d in a row): %s; %d texts are checked again", failures, failure, len(waiting)
        )
        time.sleep(min(self.pause * 2 ** (failures - 1), 30))
        # an error page alone is worth a second try before the server is replaced
        if self.server.own and (failure.lost or failures > 1):
            try:
                self.counts["restarts"] += self.server.recover()
            except ServerFailure as again:
                self._failed(again, failures + 1, waiting)
