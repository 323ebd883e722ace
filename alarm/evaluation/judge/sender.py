"""Sending requests to an OpenAI-compatible endpoint: a shared rate, retries, a cap, and errors that end the run."""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ...common.errors import UserError
from ...common.retry_after import retry_after
from ...common.service import plain_key, plain_url
from .replies import REFUSED, TOO_LONG, UNANSWERED, Answer, MalformedReply, read_answer

if TYPE_CHECKING:
    from openai import APIStatusError, AsyncOpenAI

DEFAULT_MODEL = "gpt-3.5-turbo"  # the paper's
DEFAULT_ENDPOINT = "https://api.openai.com/v1"
NO_KEY = "no-key"  # what a local server that wants no key is sent

MAX_TOKENS = 32  # of a reply, which is two words
MAX_BACKOFF = 30.0  # seconds
UNREACHABLE_AFTER = 4  # failed connections, or timeouts, before anything was heard from the endpoint
GIVE_UP_AFTER = 10  # requests in a row, each unanswered after its last attempt


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


class Stopped(Exception):
    """Another request has ended the run."""


class Sender:
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

        Raises UserError if no further request can succeed, and Stopped if another request found that out.
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
            raise Stopped
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
        raise Stopped

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
            raise UserError(f"{self.endpoint} refuses the judge's key (error 401); fix OPENAI_API_KEY or --base_url")
        hint = {
            403: "is this key allowed to use the model?",
            404: f"is there a --judge_model {self.settings.model}, and should --base_url end in /v1?",
        }.get(
            status, "the judge must take chat completions with temperature 0 and max_tokens; give another --judge_model"
        )
        raise UserError(f"the judge at {self.endpoint} answers: {says}; {hint}")

    def _lost(self, error: Exception) -> str:
        """Count a request that got no answer. -> why. Raises UserError if the endpoint was never there."""
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
                f"the judge at {self.endpoint} cannot be reached ({reason}); start the server or fix --base_url"
            )
        return reason


def redact(text: str, api_key: str) -> str:
    """`text` without the key, and without anything that looks like one."""
    if api_key != NO_KEY:
        text = text.replace(api_key, "[key]")
    return re.sub(r"\bsk-[\w*-]{6,}", "[key]", text)


def check_endpoint(base_url: str | None) -> str:
    """The endpoint to use, without a slash at its end. Raises UserError if it is no http(s) URL, or holds a key."""
    url = base_url or os.environ.get("OPENAI_BASE_URL") or DEFAULT_ENDPOINT
    return plain_url(url, "--base_url (or OPENAI_BASE_URL)", "http://localhost:8000/v1", "OPENAI_API_KEY")


def check_key(api_key: str) -> str:
    """The key without white space around it. Raises UserError, without saying it, for one that no header can carry."""
    return plain_key(api_key, "the judge's", "OPENAI_API_KEY")
