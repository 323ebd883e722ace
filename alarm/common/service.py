"""A service over HTTP: requests in flight side by side, and again for what a failing server left open."""

from __future__ import annotations

import ipaddress
import logging
import math
import re
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeVar
from urllib.parse import urlsplit

from .errors import ServiceError, UserError
from .retry_after import retry_after
from .threads import DaemonExecutor

logger = logging.getLogger(__name__)

Item = TypeVar("Item", bound=Hashable)
Answer = Callable[[Item], Any]

PAUSE = 0.5  # seconds before the first new attempt; doubles with each
LONGEST_PAUSE = 30.0  # seconds
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


class Patience:
    """Waits for a server that asks for it, and ends the run once that takes too long.

    Args:
        name: of the service, at the start of its messages.
        ways_out: what can be done instead, at the end of the last message.
        error: the ServiceError of this service.
        longest: seconds to wait in all.
        pause: seconds to wait at least; doubles with each wait, up to LONGEST_PAUSE. Some servers name no time with
            a 429.
    """

    def __init__(
        self,
        name: str,
        ways_out: str,
        error: type[ServiceError] = ServiceError,
        longest: float = LONGEST_WAIT,
        pause: float = PAUSE,
    ):
        self.name = name
        self.ways_out = ways_out
        self.error = error
        self.longest = longest
        self.pause = pause
        self.waited = 0.0
        self._times = 0

    def asked(self, failure: ServerFailure) -> bool:
        """Whether the server asks to wait, rather than being broken."""
        return failure.limited or failure.wait is not None

    def wait(self, failure: ServerFailure) -> None:
        """Wait as the failure asks. Raises `error` if that is longer than `longest` allows."""
        seconds = max(failure.wait or 0.0, min(self.pause * 2**self._times, LONGEST_PAUSE))
        if self.waited + seconds > self.longest:
            raise self.error(
                f"{self.name} asks to wait {seconds:.0f} s, after {self.waited:.0f} s of waiting ({failure}); a run "
                f"waits {self.longest:.0f} s at most: go on later with --resume, {self.ways_out}"
            )
        logger.warning("%s asks to wait: the run goes on in %.0f s (%s)", self.name, seconds, failure)
        time.sleep(seconds)
        self.waited += seconds
        self._times += 1


def answer_all(
    items: Sequence[Item],
    begin: Callable[[], Answer],
    in_flight: int,
    patience: Callable[[], Patience],
    failed: Callable[[ServerFailure, int, Sequence[Item]], None],
    found: dict[Item, Any],
) -> None:
    """Put the answer to each of different items into `found`, as they come, with `in_flight` requests at a time.

    A round ends with its first ServerFailure; what it left open is asked again in the next one.
    begin: makes what asks, at the start of each round. patience: made anew after each answer, for a server that asks
    to wait. failed: called after any other failure with the number of failures in a row and what is open; it waits,
    or raises to give up. Any other exception of `begin` and of what it makes ends all of it.
    """
    waiting = list(items)
    failures, waits = 0, patience()
    while waiting:
        done, failure = _round(waiting, begin, in_flight)
        found |= done
        waiting = [item for item in waiting if item not in done]
        if done:
            failures, waits = 0, patience()
        if failure is not None and waits.asked(failure):
            waits.wait(failure)
        elif failure is not None:
            failures += 1
            failed(failure, failures, waiting)


def _round(
    items: Sequence[Item], begin: Callable[[], Answer], in_flight: int
) -> tuple[dict[Item, Any], ServerFailure | None]:
    """Ask for every item until one request fails. -> what was answered, and the failure."""
    try:
        ask = begin()
    except ServerFailure as failure:
        return {}, failure
    stop = threading.Event()
    failures: list[ServerFailure] = []
    done: dict[Item, Any] = {}

    def answer(item: Item) -> None:
        if stop.is_set():
            return
        try:
            done[item] = ask(item)
        except ServerFailure as failure:
            failures.append(failure)
            stop.set()
        except BaseException:
            stop.set()
            raise

    with DaemonExecutor(in_flight) as pool:
        try:
            list(pool.map(answer, items))
        except BaseException:  # ^C: nobody waits for the requests in flight, the others are not begun
            stop.set()
            raise
    # several requests may have been refused: the longest wait is the one to keep
    return done, max(failures, key=lambda failure: failure.wait or 0.0, default=None)


# --- one request -----------------------------------------------------------------------------------------------------


def open_session(own: bool, in_flight: int):
    """A requests.Session for `in_flight` requests at a time. own: the server is this run's."""
    import requests

    session = requests.Session()
    session.trust_env = not own  # a proxy of the environment must not come between us and our own server
    for scheme in ("http://", "https://"):
        session.mount(scheme, requests.adapters.HTTPAdapter(pool_maxsize=in_flight))
    return session


def send(session, method: str, url: str, timeout: float, **content):
    """The response to one request. content: what it carries, for `requests`. Raises ServerFailure if there is none."""
    import requests

    try:
        return session.request(method, url, timeout=timeout, **content)
    except requests.Timeout:
        raise ServerFailure(f"no answer within {timeout:g} s", lost=True) from None
    except requests.RequestException as error:
        cause = re.search(r"\[Errno -?\d+\] ([\w ]+)", str(error))
        raise ServerFailure(f"no answer ({cause[1] if cause else type(error).__name__})", lost=True) from None


def refusal(response, reason: str) -> ServerFailure:
    """The failure of a response that is no answer, with the wait that it asks for."""
    limited, wait = response.status_code == 429, None
    if limited or response.status_code == 503:
        wait = retry_after(response.headers, time.time(), longest=math.inf)
    return ServerFailure(reason, limited=limited, wait=wait)


# --- addresses -------------------------------------------------------------------------------------------------------


def plain_url(url: str, flag: str, example: str, key: str) -> str:
    """`url` without white space around it and without a slash at its end.

    flag: what the messages call it. key: the environment variable of the key. Raises UserError if it is no http(s) URL,
    and if it holds a user, a query or a fragment, where keys are hidden.
    """
    url = url.strip().rstrip("/")
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and parts.hostname and url.isprintable() and " " not in url
        _ = parts.port  # a bad one raises
    except ValueError:
        good = False
    if not good:
        raise UserError(f"{flag} is no http or https URL; give one such as {example}")
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise UserError(f"{flag} holds a user, a query or a fragment; give the plain URL and the key by {key}")
    return url


def plain_key(text: str, name: str, variable: str) -> str:
    """The key without white space around it. Raises UserError, without saying it, for one that no header can carry."""
    key = text.strip()
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise UserError(f"{name} key is empty or holds characters that no key has; set {variable} again")
    return key


def is_near(host: str) -> bool:
    """Whether it is this machine, or an address of a private network."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
    return address.is_loopback or address.is_private or address.is_unspecified
