"""Grammar errors of English texts: LanguageTool over HTTP, supervised, or a few rules as an offline stand-in.

LanguageTool is spoken to through its documented POST /v2/check rather than through language-tool-python's client,
which keeps state in class attributes while it reads matches (wrong under concurrent calls), leaves the length of a
match in UTF-16 units, and raises in every caller when the server dies.
"""

from __future__ import annotations

import fcntl
import json
import logging
import math
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

from ....common.errors import ServiceError, UserError
from ....common.files import write_json
from ....common.retry_after import retry_after
from ....common.threads import DaemonExecutor

logger = logging.getLogger(__name__)

BACKENDS = ("languagetool", "rules")
LANGUAGE = "en-US"
MIN_JAVA = 17
PAUSE = 0.5  # seconds before the first new attempt; doubles with each
LONGEST_WAIT = 300.0  # seconds that a server may ask to wait: after ten minutes NCCL ends the processes that wait too
SLOWEST = 0.02  # seconds a character: 10,000 question marks took 48 s on two busy cores
PROJECT_FOLDER = Path(__file__).parents[4] / "languagetool"
DOWNLOAD_FOLDER = Path("~/.cache/language_tool_python")  # language-tool-python's own
STAND_IN = "use the offline stand-in --grammar_backend rules"
WAYS_OUT = (
    f"run `make languagetool`, name an installation by LTP_PATH or a running server by --grammar_server, or {STAND_IN}"
)


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


def make_checker(backend: str = "languagetool", server: str | None = None) -> Checker:
    """The checker that the flags --grammar_backend and --grammar_server ask for. Starts nothing before its first text.

    Raises UserError where it cannot work: no Java, no LanguageTool, no server at the URL.
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


# --- what the server says --------------------------------------------------------------------------------------------


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
    Raises ServerFailure where `answer` is not what the API documents for `text`.
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


def _open_session(own: bool, in_flight: int):
    import requests

    session = requests.Session()
    session.trust_env = not own  # a proxy of the environment must not come between us and our own server
    session.mount("http://", requests.adapters.HTTPAdapter(pool_maxsize=in_flight))
    return session


def _ask(session, url: str, text: str, timeout: float) -> dict:
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
        """Wait as the failure asks. Raises GrammarServiceError where that is longer than there is patience for."""
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


# --- servers ---------------------------------------------------------------------------------------------------------


class RemoteServer:
    """A LanguageTool server that somebody else runs: it can only be waited for."""

    own = False

    def __init__(self, url: str):
        if "://" not in url:
            url = f"http://{url}"
        self.address = url.rstrip("/").removesuffix("/check").removesuffix("/v2")
        try:
            parts = urlsplit(self.address)
            usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        except ValueError:  # a port or an IPv6 address that is none
            usable = False
        if not usable:
            raise UserError(f"--grammar_server {url} is no address; give one like http://localhost:8081")

    def check(self) -> None:
        """Raise UserError where no LanguageTool answers, even after the time that it asks to wait."""
        patience = Patience(LONGEST_WAIT, PAUSE)
        try:
            while True:
                try:
                    parse_matches("Good.", _ask(_open_session(False, 1), self.address, "Good.", timeout=60))
                    return
                except ServerFailure as failure:
                    if not patience.asked(failure):
                        raise
                    patience.wait(failure)
        except ServerFailure as failure:
            raise UserError(f"no LanguageTool at --grammar_server {self.address}: {failure}; {WAYS_OUT}") from None

    def url(self) -> str:
        return self.address

    def recover(self) -> bool:
        return False

    def close(self) -> None:
        pass


def find_installation() -> Path:
    """The languagetool-server.jar to start: of LTP_PATH, the project's folder, or language-tool-python's download.

    Raises UserError, naming the ways out, where there is none, and where Java is missing or too old.
    """
    java = shutil.which("java")
    if java is None:
        raise UserError(f"LanguageTool needs Java {MIN_JAVA}, which is not installed; install it and {WAYS_OUT}")
    answer = subprocess.run([java, "-version"], capture_output=True, text=True).stderr
    version = re.search(r'version "(?:1\.)?(\d+)', answer)
    if version and int(version[1]) < MIN_JAVA:
        raise UserError(f"LanguageTool needs Java {MIN_JAVA}, {java} is Java {version[1]}; install a newer one")
    named = os.environ.get("LTP_PATH")
    for folder in [Path(named)] if named else [PROJECT_FOLDER, DOWNLOAD_FOLDER.expanduser()]:
        jars = [*folder.glob("languagetool-server.jar"), *folder.glob("LanguageTool-*/languagetool-server.jar")]
        if jars:
            return max(jars, key=lambda jar: [int(n) for n in re.findall(r"\d+", jar.parent.name)]).resolve()
    if named:
        raise UserError(f"LTP_PATH={named} holds no LanguageTool-*/languagetool-server.jar; correct or unset it")
    raise UserError(f"LanguageTool is not installed; {WAYS_OUT}")


def free_port() -> int:
    """A loopback port that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def machine_folder() -> Path | None:
    """Where the processes of one run on this machine meet; None for a run of one process.

    They have the same parent (torchrun, accelerate, srun), and no other run has it.
    """
    if int(os.environ.get("LOCAL_WORLD_SIZE", "1")) < 2:
        return None
    import psutil

    parent = psutil.Process(os.getppid())
    return Path(tempfile.gettempdir()) / f"alarm-grammar-{os.getuid()}-{parent.pid}-{int(parent.create_time() * 100)}"


# Runs the server until standard input, a pipe that the run's processes hold open, ends: the kernel closes it however
# they die. A new session, so that ^C leaves the server to a run that is still saving; `kill 0` takes the whole group.
_WATCHER = '{ "$@"; echo "exited with code $?"; } & cat >/dev/null; rm -rf "$SHARED_FOLDER"; kill -9 0'

# without it the server writes three lines a request
_QUIET = """<configuration>
  <appender name="out" class="ch.qos.logback.core.ConsoleAppender">
    <encoder><pattern>%msg%n</pattern></encoder>
  </appender>
  <root level="warn"><appender-ref ref="out"/></root>
</configuration>
"""
# Keeping the rule engines between requests doubles the speed and changes no answer. Nor does looking for corrections of
# one misspelling a text alone, which nobody reads: the text of an early policy took 9 s in place of 21.
_SETTINGS = (
    "pipelineCaching=true\nmaxPipelinePoolSize=16\npipelineExpireTimeInSeconds=86400\nmaxSpellingSuggestions=1\n"
)


# the first compiler alone starts in half the CPU time (8 s for 18 s) and checks no slower after 2,000 texts
_JVM = ("-Xmx2g", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-XX:-UsePerfData")


class LocalServer:
    """One LanguageTool process for all processes of the run on this machine, bound to loopback.

    Whichever process needs it first starts it; whichever finds it broken replaces it, unless another has done so
    since. It ends when the last of them lets go of the pipe or dies.

    Args:
        jar: languagetool-server.jar.
        folder: shared by the run's processes on this machine; None for one of this object's own.
        start_timeout: seconds until it must have answered its first text (slow on a busy machine).
        choose_port: where to listen.
    """

    own = True

    def __init__(
        self,
        jar: Path,
        folder: Path | None = None,
        start_timeout: float = 300.0,
        choose_port: Callable[[], int] = free_port,
    ):
        self.jar = jar
        self.folder = folder or machine_folder()
        self.start_timeout = start_timeout
        self.choose_port = choose_port
        self._own_folder = False
        self._lifeline: int | None = None  # our hold on the pipe
        self._state: dict | None = None  # of the server we use: port, process group, when it started

    def url(self) -> str:
        """Its address; starts it when first needed. Raises ServerFailure where it does not start."""
        if self._state is None:
            self.recover()
        return f"http://127.0.0.1:{self._state['port']}"

    def recover(self) -> bool:
        """Have another server than the one used so far. Returns whether this process started it."""
        failed, self._state = self._state, None
        with self._locked():
            state_file = self.folder / "server.json"
            if state_file.exists():
                current = json.loads(state_file.read_text())
                if current != failed:
                    self._state = current
                    return False
                state_file.unlink()
                _kill_group(current["group"])
            port = self.choose_port()
            process = self._launch(port)
            try:
                self._wait_until_ready(process, port)
            except BaseException:
                _kill_group(process.pid)
                process.wait()
                raise
            self._state = {"port": port, "group": process.pid, "started": time.time_ns()}
            write_json(state_file, self._state)
        return True

    def close(self) -> None:
        """Let go of the server; it ends with its last user."""
        self._state = None
        if self._lifeline is not None:
            os.close(self._lifeline)
            self._lifeline = None
        if self._own_folder:  # where no server ever started there is no watcher to remove it
            shutil.rmtree(self.folder, ignore_errors=True)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the folder's lock and, from now on, the pipe that keeps the server alive."""
        if self.folder is None:
            self.folder = Path(tempfile.mkdtemp(prefix="alarm-grammar-"))
            self._own_folder = True
        self.folder.mkdir(mode=0o700, exist_ok=True)
        if self.folder.stat().st_uid != os.getuid():
            raise UserError(f"{self.folder} belongs to another user; set TMPDIR to a folder of your own")
        with open(self.folder / "lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            pipe = self.folder / "lifeline"
            if not pipe.exists():
                os.mkfifo(pipe, 0o600)
            held, self._lifeline = self._lifeline, os.open(pipe, os.O_RDWR)
            if held is not None:
                os.close(held)
            yield

    def _launch(self, port: int) -> subprocess.Popen:
        """Start the watcher and, under it, Java."""
        for name, content in {"logback.xml": _QUIET, "server.properties": _SETTINGS}.items():
            (self.folder / name).write_text(content)
        command = ["java", *_JVM, f"-Dlogback.configurationFile={self.folder / 'logback.xml'}"]
        command += ["-cp", str(self.jar), "org.languagetool.server.HTTPServer"]
        command += ["--config", str(self.folder / "server.properties"), "--port", str(port)]
        pipe = os.open(self.folder / "lifeline", os.O_RDONLY | os.O_NONBLOCK)
        os.set_blocking(pipe, True)
        try:
            with open(self.folder / "server.log", "wb") as log:
                return subprocess.Popen(
                    ["sh", "-c", _WATCHER, "sh", *command],
                    stdin=pipe,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    cwd=self.folder,
                    env=os.environ | {"SHARED_FOLDER": str(self.folder)},
                    start_new_session=True,
                )
        finally:
            os.close(pipe)

    def _wait_until_ready(self, process: subprocess.Popen, port: int) -> None:
        """Wait for the server's own word that it listens (another program may sit on the port), then warm it up."""
        started = time.monotonic()
        while True:
            log = (self.folder / "server.log").read_text(errors="replace")
            if "Address already in use" in log:
                raise ServerFailure(f"port {port} is busy", lost=True)
            if "exited with code" in log or process.poll() is not None:
                said = [line for line in log.splitlines() if re.search("error|exception", line, re.IGNORECASE)]
                reason = (said or log.splitlines() or ["it said nothing"])[0]
                raise ServerFailure(f"it ended while starting: {reason}", lost=True)
            if "Server started" in log:
                break
            if time.monotonic() - started > self.start_timeout:
                raise ServerFailure(f"it did not start within {self.start_timeout:g} s", lost=True)
            time.sleep(0.05)
        left = max(self.start_timeout - (time.monotonic() - started), 1.0)
        answer = _ask(_open_session(True, 1), f"http://127.0.0.1:{port}", "This is a sentence.", timeout=left)
        logger.info(
            "LanguageTool %s on port %d after %.1f s",
            answer.get("software", {}).get("version"),
            port,
            time.monotonic() - started,
        )


def _kill_group(group: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


# --- checkers --------------------------------------------------------------------------------------------------------


class LanguageToolChecker:
    """Checks texts with several requests in flight, and again whatever a failing server left unanswered.

    Args:
        server: LocalServer or RemoteServer.
        in_flight: requests at a time.
        cache_size: texts whose matches are remembered, the least recently used forgotten first.
        timeout: seconds after which a request counts as hanging; long texts get more (SLOWEST a character).
        max_failures: rounds in a row without one text answered, after which check() gives up.
        pause: seconds before the first new attempt; doubles with each.
        longest_wait: seconds, without one text answered, that the server may ask to wait; a wait is no failure.

    `counts`: texts = empty (no request: no error) + cached + checked; failures (rounds that ended early), restarts.
    One thread at a time may call check().
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

    def check(self, texts: list[str]) -> list[list[Match]]:
        """The errors of each text, in its order. Every text is answered, or GrammarServiceError is raised."""
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
        """Let go of the server."""
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
            self._session = _open_session(self.server.own, self.in_flight)
        stop = threading.Event()
        failures: list[ServerFailure] = []

        def ask(text: str) -> list[Match] | None:
            if stop.is_set():
                return None
            try:
                return parse_matches(text, _ask(self._session, url, text, self.timeout + len(text) * SLOWEST))
            except ServerFailure as failure:
                failures.append(failure)
            except BaseException:
                stop.set()
                raise
            stop.set()
            return None

        with DaemonExecutor(self.in_flight) as pool:
            try:
                answers = list(pool.map(ask, texts))
            except BaseException:  # ^C: nobody waits for the requests in flight, the others are not begun
                stop.set()
                raise
        done = {text: matches for text, matches in zip(texts, answers, strict=True) if matches is not None}
        # several requests may have been refused: the longest wait is the one to keep
        return done, max(failures, key=lambda failure: failure.wait or 0.0, default=None)

    def _failed(self, failure: ServerFailure, failures: int, waiting: list[str]) -> None:
        """Count, name and mend a failure; give up after too many."""
        self.counts["failures"] += 1
        if failures >= self.max_failures:
            raise GrammarServiceError(
                f"LanguageTool failed {failures} times in a row, last: {failure}; mend it and go on with --resume, "
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


class RulesChecker:
    """A stand-in for LanguageTool that knows a handful of unmistakable errors and nothing else."""

    def __init__(self):
        self.counts = {"texts": 0, "empty": 0}
        logger.warning(
            "GRAMMAR STAND-IN: --grammar_backend rules finds a handful of unmistakable errors, not what LanguageTool "
            "finds; its rewards and error rates compare with nothing else"
        )

    def check(self, texts: list[str]) -> list[list[Match]]:
        """The errors of each text, in its order."""
        self.counts["texts"] += len(texts)
        self.counts["empty"] += sum(not text.strip() for text in texts)
        return [rule_matches(text) for text in texts]

    def close(self) -> None:
        pass


# --- the rules of the stand-in ---------------------------------------------------------------------------------------

_CLAUSE_START = r"(?:^|(?<=[.!?,;:]\s)|(?<=\band\s)|(?<=\bbut\s)|(?<=\bbecause\s))"
_RULES = [
    (rule, re.compile(pattern, flags), message)
    for rule, pattern, flags, message in (
        # "had had" and "that that" can be right
        (
            "DOUBLED_WORD",
            r"\b(?!(?:had|that|bye|no|very|so|ha)\b)([^\W\d_]+)\s+\1\b(?!['’-])",
            re.IGNORECASE,
            "a word twice",
        ),
        ("SENTENCE_START", r"^\s*[\"'“‘(]?\b([a-z]+)\b(?![.@/]\w)", 0, "a sentence starts with a capital"),
        (
            "SENTENCE_START",
            r"(?:(?<=[a-z]{3}[.!?]\s)|(?<=[!?]\s))[\"'“‘(]?([a-z]+)\b(?![.@/]\w)",
            0,
            "a sentence starts with a capital",
        ),
        (
            "A_AN",
            r"\b([Aa] (?=[aeiou])(?!(?:one|once|eu|ewe|ut[eo]|u[bnrs][aeiu])[a-z]*)[a-z]{2,})\b",
            0,
            "an before a vowel",
        ),
        ("A_AN", r"\b([Aa]n (?=[bcdfgjklmnpqrstvwxyz])[a-z]{2,})\b(?<!\ban x-ray)", 0, "a before a consonant"),
        ("COMMA_SPACE", r"(?<=[^\W\d_]{2})(,(?=[^\W\d_]{2})[^\W\d_]+)", 0, "a space follows a comma"),
        ("COMMA_SPACE", r"(?<=\w)(\s+,)(?=\s|$)", 0, "no space before a comma"),
        (
            "AGREEMENT",
            _CLAUSE_START + r"((?:he|she|it) (?:are|am|have|do|don['’]t|aren['’]t|haven['’]t))\b",
            re.IGNORECASE,
            "verb and subject disagree",
        ),
        (
            "AGREEMENT",
            r"(?<!\bof )\b((?:they|we|you) (?:is|was|has|does|am|isn['’]t|wasn['’]t|hasn['’]t|doesn['’]t))\b",
            re.IGNORECASE,
            "verb and subject disagree",
        ),
        ("AGREEMENT", r"\b(I (?:are|is|has|does|aren['’]t|hasn['’]t|doesn['’]t))\b", 0, "verb and subject disagree"),
    )
]
# "x and I is", "James I has"
_BEFORE_I = re.compile(r"(?:\b(?:and|or)|[A-Z]\w+) $")


def rule_matches(text: str) -> list[Match]:
    """The stand-in's errors of one text, by position."""
    matches = []
    for rule, pattern, message in _RULES:
        for found in pattern.finditer(text):
            start, end = found.span() if rule == "DOUBLED_WORD" else found.span(1)
            if text[start:end].startswith("I ") and _BEFORE_I.search(text, max(0, start - 40), start):
                continue
            matches.append(Match(start, end, rule, message))
    return sorted(matches, key=lambda match: (match.start, match.end))


# --- matches on tokens -----------------------------------------------------------------------------------------------


def mark_tokens(offsets: list[tuple[int, int]], matches: list[Match]) -> list[bool]:
    """Which tokens hold a character of a match. offsets: T spans of the text -> T marks. Linear in their lengths."""
    length = max((end for _, end in offsets), default=0)
    steps = [0] * (length + 1)
    for match in matches:
        steps[min(match.start, length)] += 1
        steps[min(match.end, length)] -= 1
    covered = [0, *accumulate(depth > 0 for depth in accumulate(steps))]  # covered[c]: characters before c in a match
    return [covered[end] > covered[start] for start, end in offsets]
