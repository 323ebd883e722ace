"""A language model as the judge of two texts, behind any OpenAI-compatible endpoint.

Every pair is shown in both orders at temperature 0. What the judge preferred is kept on disk under a hash of all that
it was asked (endpoint, model, template, texts), so nothing is paid for twice, not even after a kill.
"""

from __future__ import annotations

import argparse
import asyncio
import fcntl
import hashlib
import ipaddress
import json
import math
import os
import random
import re
import string
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from .errors import UserError
from .flags import positive_float, positive_int

if TYPE_CHECKING:
    from openai import APIStatusError, AsyncOpenAI

DEFAULT_MODEL = "gpt-3.5-turbo"  # the paper's
DEFAULT_ENDPOINT = "https://api.openai.com/v1"
DEFAULT_TEMPLATE = Path(__file__).parents[1] / "eval" / "judge_prompt.txt"
CACHE_NAME = "judge-cache.jsonl"
PLACEHOLDERS = {"query", "output_a", "output_b"}
NO_KEY = "no-key"  # what a local server that wants no key is sent

MAX_TOKENS = 32  # of a reply, which is two words
CONNECT_SECONDS = 5.0
MAX_RETRY_AFTER = 120.0  # seconds
MAX_BACKOFF = 30.0  # seconds
GRACE = 10.0  # seconds for requests in flight (paid for) when a run stops
UNREACHABLE_AFTER = 4  # failed connections, or timeouts, before anything was heard from the endpoint
GIVE_UP_AFTER = 10  # requests in a row, each unanswered after its last attempt

# why a request has no verdict
REFUSED, UNREADABLE, TOO_LONG, UNANSWERED = "refused", "unreadable", "too long", "unanswered"


@dataclass(frozen=True)
class Comparison:
    """Two texts that answer the same query."""

    query: str
    a: str
    b: str


@dataclass(frozen=True)
class Judgement:
    """What the judge says of one comparison, in terms of its a and b whatever was shown first."""

    a_first: int | None  # a shown first: 1 a is preferred, -1 b is, None no verdict
    b_first: int | None  # b shown first: the same
    identical: bool = False  # the same text twice: a tie, never sent

    @property
    def failed(self) -> bool:
        return not self.identical and (self.a_first is None or self.b_first is None)

    @property
    def flipped(self) -> bool:
        """Both orders were judged, and the preference went with the place."""
        return None not in (self.a_first, self.b_first) and self.a_first != self.b_first

    @property
    def verdict(self) -> int | None:
        """1: a wins, 0: tie (identical, or flipped), -1: b wins, None: failed."""
        if self.failed:
            return None
        return 0 if self.identical or self.flipped else self.a_first


@dataclass(frozen=True)
class JudgeSettings:
    """All that a judge is but its key."""

    template: str  # text with $query, $output_a (shown first), $output_b; $$ is a dollar sign
    cache: Path  # JSON lines, made if missing
    model: str = DEFAULT_MODEL
    base_url: str | None = None  # None: OPENAI_BASE_URL, else OpenAI
    max_calls: int | None = None  # requests in this judge's life, retries included
    concurrency: int = 8  # requests in flight
    requests_per_minute: float | None = None
    timeout: float = 120.0  # seconds an attempt may take
    attempts: int = 6  # of one request
    backoff: float = 0.5  # seconds before the second attempt; doubled for each further one


@dataclass(frozen=True)
class Estimate:
    """What judging would take, before anything is sent."""

    comparisons: int
    identical: int  # comparisons of a text with itself
    cached: int  # requests whose answer is on disk
    calls: int  # requests to send; retries come on top
    prompt_tokens: int  # of these, by the rule of thumb of 4 bytes of UTF-8 a token

    def __str__(self) -> str:
        return (
            f"{self.comparisons:,} comparisons ({self.identical:,} of identical texts), {self.calls:,} calls to make "
            f"({self.cached:,} in the cache), about {self.prompt_tokens:,} prompt tokens at 4 bytes each and at most "
            f"{self.calls * MAX_TOKENS:,} in the replies"
        )


@dataclass
class Usage:
    """What a judge has done so far."""

    calls: int = 0  # requests sent, retries included
    retries: int = 0
    prompt_tokens: int = 0  # as the endpoint counted them, of the replies that came
    completion_tokens: int = 0
    failures: Counter[str] = field(default_factory=Counter)  # requests without a verdict, by kind

    def __str__(self) -> str:
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in sorted(self.failures.items()))
        return (
            f"{self.calls:,} calls, {self.retries:,} of them retries; {self.prompt_tokens:,} prompt and "
            f"{self.completion_tokens:,} reply tokens; requests without a verdict: {kinds or 'none'}"
        )


# --- what is asked, and what the replies mean ------------------------------------------------------------------------


def parse_template(text: str) -> string.Template:
    """A judge's template. Raises UserError where a placeholder is missing, unknown or malformed."""
    template = string.Template(text)
    if not template.is_valid():
        raise UserError("the judge's template holds a $ that starts no placeholder; write $$ for a dollar sign")
    names = set(template.get_identifiers())
    if names != PLACEHOLDERS:
        problems = [f"lacks ${name}" for name in sorted(PLACEHOLDERS - names)]
        problems += [f"holds the unknown ${name}" for name in sorted(names - PLACEHOLDERS)]
        raise UserError(f"the judge's template {', '.join(problems)}; it takes $query, $output_a and $output_b")
    return template


def build_prompt(template: string.Template, query: str, first: str, second: str) -> str:
    """The message that shows `first` as Output (a). Texts are put in literally, whatever they hold."""
    prompt = template.substitute(query=query, output_a=first, output_b=second)
    return prompt.encode("utf-8", "replace").decode("utf-8")  # half a surrogate pair cannot be sent


_NAMED = re.compile(r"output\s*\(\s*([a-z])\s*\)|(?<!\w)\(\s*([a-z])\s*\)", re.IGNORECASE)
_BARE = re.compile(r"\W*(?:output\W*)?([ab])\W*", re.IGNORECASE)


def read_verdict(reply: str) -> str | None:
    """Which output a reply names: "a", "b", or None where it does not name exactly one.

    The outputs named are the single letters in parentheses, alone or after "output", in any case: "Output (a)",
    "**output (B)** is better", "(a)". One of them, and it is a or b: that is the verdict; "Output (c)" is none, "(a)
    rather than (b)" neither. Without any, the whole reply must be "a", "b", "Output a" or "Output b".
    """
    named = {(match[1] or match[2]).lower() for match in _NAMED.finditer(reply)}
    if not named and (bare := _BARE.fullmatch(reply)):
        named = {bare[1].lower()}
    return named.pop() if named in ({"a"}, {"b"}) else None


class MalformedReply(Exception):
    """Something came back that is no chat completion."""


@dataclass(frozen=True)
class Answer:
    """What came of one request."""

    preferred: str | None  # "a": the text shown first, "b": the second, None: no verdict
    reply: str  # as it came; where none came, why
    failure: str | None = None  # the kind, without a verdict
    prompt_tokens: int = 0
    completion_tokens: int = 0


def read_answer(body: object) -> Answer:
    """The answer in a decoded chat completion. Raises MalformedReply where it is none.

    Of a reply that was cut off at MAX_TOKENS only whole lines count.
    """
    try:
        choice = body["choices"][0]
        message, finish = choice["message"], choice.get("finish_reason")
        content, refusal = message.get("content"), message.get("refusal")
    except (TypeError, KeyError, IndexError, AttributeError):
        raise MalformedReply("the reply is no chat completion") from None
    if not isinstance(content, str | None) or not isinstance(refusal, str | None):
        raise MalformedReply("the reply is no chat completion")
    usage = body.get("usage")
    counts = [usage.get(name) if isinstance(usage, dict) else 0 for name in ("prompt_tokens", "completion_tokens")]
    tokens = [count if isinstance(count, int) else 0 for count in counts]
    if refusal or finish == "content_filter":
        return Answer(None, refusal or content or "", REFUSED, *tokens)
    content = content or ""
    preferred = read_verdict(content.rpartition("\n")[0] if finish == "length" else content)
    return Answer(preferred, content, None if preferred else UNREADABLE, *tokens)


def retry_after(headers: Mapping[str, str], now: float) -> float | None:
    """Seconds that a server asks to wait, at most MAX_RETRY_AFTER; None where it asks for nothing readable.

    headers: with lower-case names or regardless of case. now: seconds since the epoch, for a header that is a date.
    """
    for name, unit in (("retry-after-ms", 1000), ("retry-after", 1)):  # the first is OpenAI's own
        try:
            seconds = float(headers.get(name) or "nan") / unit
        except ValueError:
            try:
                seconds = parsedate_to_datetime(headers[name]).timestamp() - now
            except (ValueError, OverflowError):
                continue
        if not math.isnan(seconds):
            return min(max(seconds, 0.0), MAX_RETRY_AFTER)
    return None


def request_key(endpoint: str, model: str, template: str, query: str, first: str, second: str) -> str:
    """The name of a request in the cache: equal only where all six are."""
    # JSON keeps the six apart, and takes half a surrogate pair
    return hashlib.sha256(json.dumps([endpoint, model, template, query, first, second]).encode()).hexdigest()


# --- the cache -------------------------------------------------------------------------------------------------------


class AnswerCache:
    """Answers on disk, a JSON line each, appended by one process at a time. Failures are there to be read, not reused.

    Not synced to the disk before the end: a kill loses nothing, a power cut may lose the last answers.
    """

    _START = b'{"key": "'

    def __init__(self, path: Path):
        self.path = path
        self.preferred: dict[str, str] = {}  # request key -> "a" or "b"
        self._file: int | None = None

    def read(self) -> int:
        """Fill `preferred`. -> bytes of the file that are whole lines. Raises UserError for another kind of file."""
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return 0
        except OSError as error:
            raise UserError(f"the judge's cache {self.path} cannot be read ({error.strerror})") from None
        *lines, torn = content.split(b"\n")
        self.preferred = {}
        for number, line in enumerate(lines, start=1):
            try:
                record = json.loads(line)
                if record["preferred"] in ("a", "b"):
                    self.preferred[record["key"]] = record["preferred"]
            except (ValueError, KeyError, TypeError):
                raise UserError(
                    f"the judge's cache {self.path}, line {number} is no answer of a judge; mend it or give another "
                    "--judge_cache"
                ) from None
        start = torn[: len(self._START)]
        if not self._START.startswith(start):  # a stranger's file is not to be cut
            raise UserError(f"the judge's cache {self.path} holds something else; give another --judge_cache")
        return len(content) - len(torn)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Lock the file for this process, read it, and cut off a line that a killed run left unfinished."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        except OSError as error:
            raise UserError(
                f"the judge's cache {self.path} cannot be written ({error.strerror}); give another --judge_cache"
            ) from None
        try:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                why = "another run is using it" if isinstance(error, BlockingIOError) else error.strerror
                raise UserError(
                    f"the judge's cache {self.path} cannot be locked ({why}); wait, or give another --judge_cache"
                ) from None
            os.ftruncate(self._file, self.read())
            yield
            os.fsync(self._file)
        finally:
            os.close(self._file)
            self._file = None

    def add(self, key: str, answer: Answer) -> None:
        """Write one answer down. Raises UserError where the disk is full."""
        record = {"key": key, "preferred": answer.preferred, "failure": answer.failure, "reply": answer.reply}
        line = json.dumps(record).encode() + b"\n"
        try:
            while line:
                line = line[os.write(self._file, line) :]
        except OSError as error:
            raise UserError(
                f"the judge's cache {self.path} cannot be written ({error.strerror}); make room and run again: "
                "earlier answers are kept"
            ) from None
        if answer.preferred:
            self.preferred[key] = answer.preferred


# --- sending ---------------------------------------------------------------------------------------------------------


class _Stopped(Exception):
    """Another request has ended the run."""


class _Sender:
    """Requests that share a rate, the pauses that the endpoint asks for, a cap, and their end."""

    def __init__(self, client: AsyncOpenAI, endpoint: str, settings: JudgeSettings, usage: Usage, api_key: str):
        self.client, self.endpoint, self.settings, self.usage = client, endpoint, settings, usage
        self.stop = asyncio.Event()
        self._api_key = api_key
        self._interval = 60 / settings.requests_per_minute if settings.requests_per_minute else 0.0
        self._next = 0.0  # loop time before which nothing is sent
        self._heard = False  # anything, from the endpoint
        self._no_connection = 0
        self._timeouts = 0
        self._unanswered = 0  # requests in a row
        self._random = random.Random()

    async def ask(self, prompt: str) -> Answer:
        """Send one prompt until it is answered or its attempts are used up.

        Raises UserError where no further request can succeed, and _Stopped where another one found that out.
        """
        import openai

        for attempt in range(self.settings.attempts):
            if attempt:
                pause = min(self.settings.backoff * 2 ** (attempt - 1), MAX_BACKOFF)
                await self._sleep(pause * self._random.uniform(0.5, 1.0))
            await self._take_turn()
            self.usage.retries += attempt > 0
            try:
                body = await self._send(prompt)
                answer = read_answer(body)
            except openai.APIStatusError as error:
                self._heard = True
                if (failure := self._fault_of_the_texts(error)) is not None:
                    return failure
                self._raise_if_final(error)
                reason = self._say(error.message)
                if (seconds := retry_after(error.response.headers, time.time())) is not None:
                    self._next = max(self._next, asyncio.get_running_loop().time() + seconds)
            except (TimeoutError, openai.APITimeoutError, openai.APIConnectionError) as error:
                reason = self._lost(error)
            except MalformedReply as error:
                self._heard = True
                reason = str(error)
            else:
                self._heard, self._unanswered = True, 0
                self.usage.prompt_tokens += answer.prompt_tokens
                self.usage.completion_tokens += answer.completion_tokens
                return answer
        self._unanswered += 1
        if self._unanswered >= GIVE_UP_AFTER:
            raise UserError(
                f"the judge at {self.endpoint} left {GIVE_UP_AFTER} requests in a row unanswered, each after "
                f"{self.settings.attempts} attempts (last: {reason}); what was answered is kept: run again later"
            )
        return Answer(None, reason, UNANSWERED)

    async def _send(self, prompt: str) -> object:
        self.usage.calls += 1
        # the client's own timeout is one between two bytes
        async with asyncio.timeout(self.settings.timeout):
            response = await self.client.chat.completions.with_raw_response.create(
                model=self.settings.model,
                messages=[{"role": "user", "content": prompt}],
                temperature=0,
                max_tokens=MAX_TOKENS,
            )
        try:
            return json.loads(response.http_response.text)
        except ValueError:
            raise MalformedReply("the reply is not JSON") from None

    async def _take_turn(self) -> None:
        """Wait for a pause to end and for this request's place in the rate; stop at the cap."""
        clock = asyncio.get_running_loop().time
        while (wait := self._next - clock()) > 0:
            await self._sleep(wait)
        if self.stop.is_set():
            raise _Stopped
        if self.settings.max_calls is not None and self.usage.calls >= self.settings.max_calls:
            raise UserError(
                f"the judge's --max_calls {self.settings.max_calls} are used up, {self.usage.retries} of them on "
                "retries; what was answered is kept: run again to go on from there"
            )
        self._next = clock() + self._interval

    async def _sleep(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self.stop.wait(), seconds)
        except TimeoutError:
            return
        raise _Stopped

    def _say(self, text: str) -> str:
        """An endpoint's own words on one short line, without the key."""
        return " ".join(redact(text, self._api_key).split())[:300].rstrip(".")

    def _fault_of_the_texts(self, error: APIStatusError) -> Answer | None:
        """A failure that other texts need not meet: too long for the model, or kept back by a content filter."""
        message = error.message
        # OpenAI; vLLM, which gives no code; llama.cpp
        if (
            error.code == "context_length_exceeded"
            or error.type == "exceed_context_size_error"
            or error.status_code == 413
            or (error.status_code == 400 and "maximum context length" in message)
        ):
            return Answer(None, self._say(message), TOO_LONG)
        if error.status_code == 400 and error.code == "content_filter":  # Azure
            return Answer(None, self._say(message), REFUSED)
        return None

    def _raise_if_final(self, error: APIStatusError) -> None:
        status, says = error.status_code, self._say(error.message)
        if isinstance(error.body, dict) and isinstance(error.body.get("detail"), str):  # FastAPI
            says = self._say(f"{says} - {error.body['detail']}")
        if "insufficient_quota" in (error.code, error.type):
            raise UserError(
                f"the judge's account at {self.endpoint} has no quota left ({says}); what was answered is kept"
            )
        if status >= 500 or status in (408, 409, 429):
            return
        if status == 401:  # such answers repeat the key, in part or whole
            raise UserError(f"{self.endpoint} refuses the judge's key (error 401); mend OPENAI_API_KEY or --base_url")
        hint = {
            403: "is this key allowed to use the model?",
            404: f"is there a --judge_model {self.settings.model}, and should --base_url end in /v1?",
        }.get(
            status, "the judge must take chat completions with temperature 0 and max_tokens; give another --judge_model"
        )
        raise UserError(f"the judge at {self.endpoint} answers: {says}; {hint}")

    def _lost(self, error: Exception) -> str:
        """Count a request that got no answer. -> why. Raises UserError where the endpoint was never there."""
        import openai

        cause = type(error.__cause__).__name__
        if isinstance(error, TimeoutError | openai.APITimeoutError) and cause != "ConnectTimeout":
            reason = f"no answer within {self.settings.timeout:g} s"
            self._timeouts += 1
            if not self._heard and self._timeouts >= UNREACHABLE_AFTER:
                raise UserError(
                    f"the judge at {self.endpoint} takes requests and answers none ({reason}); look at the server, and "
                    "give a slow one a smaller --concurrency"
                )
            return reason
        reason = self._say(f"{cause}: {error.__cause__}")
        self._no_connection += 1
        if not self._heard and self._no_connection >= UNREACHABLE_AFTER:
            raise UserError(
                f"the judge at {self.endpoint} cannot be reached ({reason}); start the server or mend --base_url"
            )
        return reason


def redact(text: str, api_key: str) -> str:
    """`text` without the key, and without anything that looks like one."""
    if api_key != NO_KEY:
        text = text.replace(api_key, "[key]")
    return re.sub(r"\bsk-[\w*-]{6,}", "[key]", text)


# --- the judge -------------------------------------------------------------------------------------------------------

_Texts = tuple[str, str, str]  # query, shown first, shown second


class Judge:
    """Judges comparisons. `usage` counts what it took, over all calls of judge()."""

    def __init__(self, settings: JudgeSettings, api_key: str):
        """Send nothing yet. Raises UserError for a bad template, endpoint or key."""
        self.settings = settings
        self.usage = Usage()
        self.endpoint = check_endpoint(settings.base_url)
        self._template = parse_template(settings.template)
        self._api_key = check_key(api_key)
        self._cache = AnswerCache(settings.cache)
        self._failed: set[str] = set()  # request keys; asked again by a later run, not by this one

    def estimate(self, comparisons: Sequence[Comparison]) -> Estimate:
        """What judge() would send. Needs no network. Raises UserError for a cache that is something else."""
        self._cache.read()
        return self._estimate(comparisons, *self._plan(comparisons))

    def judge(self, comparisons: Sequence[Comparison]) -> list[Judgement]:
        """The judgement of each comparison, in their order; says on stderr what it will take, and shows progress.

        Raises UserError before the first request where there are more than max_calls to make, and where the endpoint
        cannot be used; what was answered until then is in the cache. Requests without a verdict raise nothing.
        """
        if all(comparison.a == comparison.b for comparison in comparisons):
            return [Judgement(None, None, identical=True) for _ in comparisons]
        with self._cache.writing():
            keys, open_requests = self._plan(comparisons)
            estimate = self._estimate(comparisons, keys, open_requests)
            print(f"judge {self.settings.model} at {self.endpoint}: {estimate}", file=sys.stderr, flush=True)
            left = None if self.settings.max_calls is None else self.settings.max_calls - self.usage.calls
            if left is not None and estimate.calls > left:
                raise UserError(
                    f"the judge would make {estimate.calls} calls, and --max_calls leaves {left}; raise it, or compare "
                    "fewer prompts by --max_compare"
                )
            if open_requests:
                asyncio.run(self._ask_all(open_requests))
            return [self._judgement(pair) for pair in keys]

    def summary(self) -> dict:
        """Who judged, and what it took, for a report. Without the key."""
        usage = self.usage
        counts = {f"requests {kind}": count for kind, count in sorted(usage.failures.items())}
        return {
            "model": self.settings.model,
            "endpoint": self.endpoint,
            "template_sha256": hashlib.sha256(self.settings.template.encode()).hexdigest(),
            "calls": usage.calls,
            "retries": usage.retries,
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
            **counts,
        }

    def _plan(self, comparisons: Sequence[Comparison]) -> tuple[list[tuple[str, str] | None], dict[str, _Texts]]:
        """The request keys of each comparison (None: identical), and the requests to send, each once."""
        keys, open_requests = [], {}
        for item in comparisons:
            if item.a == item.b:
                keys.append(None)
                continue
            orders = [(item.query, item.a, item.b), (item.query, item.b, item.a)]
            pair = tuple(
                request_key(self.endpoint, self.settings.model, self.settings.template, *texts) for texts in orders
            )
            keys.append(pair)
            for key, texts in zip(pair, orders, strict=True):
                if key not in self._cache.preferred and key not in self._failed:
                    open_requests[key] = texts
        return keys, open_requests

    def _estimate(
        self,
        comparisons: Sequence[Comparison],
        keys: list[tuple[str, str] | None],
        open_requests: dict[str, _Texts],
    ) -> Estimate:
        sizes = (len(build_prompt(self._template, *texts).encode()) for texts in open_requests.values())
        return Estimate(
            comparisons=len(comparisons),
            identical=keys.count(None),
            cached=len({key for pair in keys if pair for key in pair} & self._cache.preferred.keys()),
            calls=len(open_requests),
            prompt_tokens=sum(math.ceil(size / 4) for size in sizes),
        )

    def _judgement(self, pair: tuple[str, str] | None) -> Judgement:
        if pair is None:
            return Judgement(None, None, identical=True)
        a_first, b_first = (self._cache.preferred.get(key) for key in pair)
        # shown first is "a" to the judge: with b first, "a" means b
        return Judgement({"a": 1, "b": -1}.get(a_first), {"a": -1, "b": 1}.get(b_first))

    async def _ask_all(self, requests: dict[str, _Texts]) -> None:
        import openai
        from tqdm.auto import tqdm

        settings = self.settings
        timeout = openai.Timeout(settings.timeout, connect=min(settings.timeout, CONNECT_SECONDS))
        client = openai.AsyncOpenAI(api_key=self._api_key, base_url=self.endpoint, timeout=timeout, max_retries=0)
        sender = _Sender(client, self.endpoint, settings, self.usage, self._api_key)
        queue = iter(requests.items())

        async def work() -> None:
            for key, texts in queue:  # the workers share it
                try:
                    answer = await sender.ask(build_prompt(self._template, *texts))
                except _Stopped:
                    return
                self._keep(key, answer)
                progress.set_postfix(retries=self.usage.retries, failed=self.usage.failures.total(), refresh=False)
                progress.update()

        with tqdm(total=len(requests), desc="judge", unit="call", mininterval=0.5) as progress:
            workers = [asyncio.create_task(work()) for _ in range(min(settings.concurrency, len(requests)))]
            try:
                done, running = await asyncio.wait(workers, return_when=asyncio.FIRST_EXCEPTION)
                sender.stop.set()
                if running:
                    await asyncio.wait(running, timeout=GRACE)
                for worker in done:
                    worker.result()
            finally:
                for worker in workers:
                    worker.cancel()
                await asyncio.gather(*workers, return_exceptions=True)
                await client.close()

    def _keep(self, key: str, answer: Answer) -> None:
        if answer.failure:
            self._failed.add(key)
            self.usage.failures[answer.failure] += 1
        reply = redact(answer.reply, self._api_key)
        self._cache.add(key, Answer(answer.preferred, reply, answer.failure))


def check_endpoint(base_url: str | None) -> str:
    """The endpoint to use, without a slash at its end. Raises UserError where it is no http(s) URL, or holds a key."""
    url = (base_url or os.environ.get("OPENAI_BASE_URL") or DEFAULT_ENDPOINT).strip().rstrip("/")
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and parts.hostname and url.isprintable() and " " not in url
        _ = parts.port  # a bad one raises
    except ValueError:
        good = False
    if not good:
        raise UserError(
            "--base_url (or OPENAI_BASE_URL) is no http or https URL; give one such as http://localhost:8000/v1"
        )
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise UserError(
            "--base_url holds a user, a query or a fragment; give the plain URL and the key by OPENAI_API_KEY"
        )
    return url


def check_key(api_key: str) -> str:
    """The key without white space around it. Raises UserError, without saying it, for one that no header can carry."""
    key = api_key.strip()
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise UserError("the judge's key is empty or holds characters that no key has; set OPENAI_API_KEY again")
    return key


# --- flags -----------------------------------------------------------------------------------------------------------

_FLAGS = (
    "judge_model", "base_url", "api_key", "judge_template", "judge_cache", "max_calls", "concurrency",
    "requests_per_minute",
)  # fmt: skip


def add_judge_flags(parser: argparse.ArgumentParser) -> None:
    """Add --use_gpt and what goes with it. judge_from_flags() reads them."""
    flags = parser.add_argument_group(
        "judge", "a language model compares the texts too, behind any OpenAI-compatible endpoint"
    )
    # no defaults here: a flag given without --use_gpt must show
    flags.add_argument("--use_gpt", action="store_true", help="ask a judge for each pair of texts, in both orders")
    flags.add_argument("--judge_model", help=f"the judge (default: {DEFAULT_MODEL})")
    flags.add_argument("--base_url", help=f"its endpoint (default: OPENAI_BASE_URL, else {DEFAULT_ENDPOINT})")
    flags.add_argument(
        "--api_key", help="its key; better in OPENAI_API_KEY: a command line is seen by others and kept by the shell"
    )
    flags.add_argument(
        "--judge_template", type=Path,
        help="what the judge is asked: a text file with $query, $output_a, $output_b that wants Output (a) or Output "
        "(b) in return (default: eval/judge_prompt.txt)",
    )  # fmt: skip
    flags.add_argument(
        "--judge_cache", type=Path, help=f"file of its answers, reused (default: {CACHE_NAME} beside the results)"
    )
    flags.add_argument("--max_calls", type=positive_int, help="make at most so many calls, retries included")
    flags.add_argument(
        "--concurrency", type=positive_int, help=f"calls at a time (default: {JudgeSettings.concurrency})"
    )
    flags.add_argument("--requests_per_minute", type=positive_float, help="start at most so many calls a minute")


def judge_from_flags(args: argparse.Namespace, results_folder: Path) -> Judge | None:
    """The judge that the flags ask for; None without --use_gpt. Reads the key out of `args`, so that nobody stores it.

    Raises UserError for judge flags without --use_gpt, a missing key, and whatever Judge() finds. Sends nothing.
    """
    given = {name: getattr(args, name) for name in _FLAGS if getattr(args, name) is not None}
    args.api_key = None
    if not args.use_gpt:
        if given:
            raise UserError(f"--{next(iter(given))} goes with --use_gpt; add --use_gpt or drop it")
        return None

    api_key = given.pop("api_key", None)
    if api_key is not None:
        print(
            "warning: --api_key on a command line can be read by other users and stays in the shell's history; prefer "
            "the environment variable OPENAI_API_KEY",
            file=sys.stderr,
        )
    api_key = api_key or os.environ.get("OPENAI_API_KEY", "").strip()
    endpoint = check_endpoint(given.get("base_url"))
    local = _is_local(urlsplit(endpoint).hostname)
    if not api_key:
        if not local:
            raise UserError(
                f"the judge at {endpoint} needs a key: set OPENAI_API_KEY (to any word for a server that wants none)"
            )
        api_key = NO_KEY
    elif endpoint.startswith("http:") and not local:
        print(f"warning: the judge's key goes to {endpoint} unencrypted; prefer https", file=sys.stderr)

    path = given.pop("judge_template", DEFAULT_TEMPLATE)
    try:
        template = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "not UTF-8 text"
        raise UserError(f"the judge's template {path} cannot be read ({why}); mend --judge_template") from None
    settings = JudgeSettings(
        template,
        given.pop("judge_cache", results_folder / CACHE_NAME),
        **{{"judge_model": "model"}.get(name, name): value for name, value in given.items()},
    )
    return Judge(settings, api_key)


def _is_local(host: str) -> bool:
    """This machine, or an address of a private network."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
    return address.is_loopback or address.is_private or address.is_unspecified
