"""The LanguageTool server of a run: one that somebody else runs, or one that the run starts and ends."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

from ....common.errors import UserError
from ....common.files import write_json
from ....common.service import ServerFailure, open_session
from .matches import STAND_IN
from .protocol import ask, parse_matches, patience

logger = logging.getLogger(__name__)

MIN_JAVA = 17
# folders of LanguageTool: `make languagetool` writes the first, language-tool-python downloads to the second
FOLDERS = (Path(__file__).parents[4] / "languagetool", Path("~/.cache/language_tool_python"))
WAYS_OUT = (
    f"run `make languagetool`, name an installation by LTP_PATH or a running server by --grammar_server, or {STAND_IN}"
)


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
        """Raise UserError if no LanguageTool answers, even after the time that it asks to wait."""
        waits = patience()
        try:
            while True:
                try:
                    parse_matches("Good.", ask(open_session(False, 1), self.address, "Good.", timeout=60))
                    return
                except ServerFailure as failure:
                    if not waits.asked(failure):
                        raise
                    waits.wait(failure)
        except ServerFailure as failure:
            raise UserError(f"no LanguageTool at --grammar_server {self.address}: {failure}; {WAYS_OUT}") from None

    def url(self) -> str:
        return self.address

    def recover(self) -> bool:
        return False

    def close(self) -> None:
        pass


def find_installation(folders: Sequence[Path] = FOLDERS) -> Path:
    """The languagetool-server.jar to start: that of LTP_PATH, or else of the first of `folders` that has one.

    Raises UserError with the ways out if there is none, and if Java is missing or too old.
    """
    java = shutil.which("java")
    if java is None:
        raise UserError(f"LanguageTool needs Java {MIN_JAVA}, which is not installed; install it and {WAYS_OUT}")
    answer = subprocess.run([java, "-version"], capture_output=True, text=True).stderr
    version = re.search(r'version "(?:1\.)?(\d+)', answer)
    if version and int(version[1]) < MIN_JAVA:
        raise UserError(f"LanguageTool needs Java {MIN_JAVA}, {java} is Java {version[1]}; install a newer one")
    named = os.environ.get("LTP_PATH")
    for folder in [Path(named)] if named else [folder.expanduser() for folder in folders]:
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
# one misspelling a text alone, which nobody reads: the text of an early policy took 9 s instead of 21.
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
        choose_port: gives the port to listen on.
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
        """Its address; starts it when first needed. Raises ServerFailure if it does not start."""
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
        if self._own_folder:  # if no server ever started, there is no watcher to remove it
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
                errors = [line for line in log.splitlines() if re.search("error|exception", line, re.IGNORECASE)]
                reason = (errors or log.splitlines() or ["it printed nothing"])[0]
                raise ServerFailure(f"it ended while starting: {reason}", lost=True)
            if "Server started" in log:
                break
            if time.monotonic() - started > self.start_timeout:
                raise ServerFailure(f"it did not start within {self.start_timeout:g} s", lost=True)
            time.sleep(0.05)
        left = max(self.start_timeout - (time.monotonic() - started), 1.0)
        answer = ask(open_session(True, 1), f"http://127.0.0.1:{port}", "This is a sentence.", timeout=left)
        logger.info(
            "LanguageTool %s on port %d after %.1f s",
            answer.get("software", {}).get("version"),
            port,
            time.monotonic() - started,
        )


def _kill_group(group: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)
