"""A language model as the judge of two texts, behind any OpenAI-compatible endpoint.

Every pair is shown in both orders at temperature 0. What the judge preferred is kept on disk under a hash of all that
it was asked (endpoint, model, template, texts), so nothing is paid for twice, not even after a kill.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import math
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

from ...common.errors import UserError
from ...common.flags import positive_float, positive_int
from ...common.service import is_near
from ...common.threads import DaemonExecutor
from .replies import Answer, AnswerCache, build_prompt, parse_template, request_key
from .sender import (
    DEFAULT_ENDPOINT,
    DEFAULT_MODEL,
    MAX_TOKENS,
    NO_KEY,
    JudgeSettings,
    Sender,
    Stopped,
    Usage,
    check_endpoint,
    check_key,
    redact,
)

DEFAULT_TEMPLATE = Path(__file__).parents[3] / "eval" / "judge_prompt.txt"
CACHE_NAME = "judge-cache.jsonl"
CONNECT_SECONDS = 5.0
GRACE = 10.0  # seconds for requests in flight (paid for) when a run stops


@dataclass(frozen=True)
class Comparison:
    """Two texts that answer the same query."""

    query: str
    a: str
    b: str


@dataclass(frozen=True)
class Judgement:
    """What the judge says of one comparison. a and b are the comparison's, in any order of showing."""

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

    def again(self, cache: Path) -> Judge:
        """The same judge with another cache, for a repeat. Both count into one `usage`, which max_calls limits."""
        other = Judge(replace(self.settings, cache=cache), self._api_key)
        other.usage = self.usage
        return other

    def estimate(self, comparisons: Sequence[Comparison]) -> Estimate:
        """What judge() would send. Needs no network. Raises UserError for a cache that is something else."""
        self._cache.read()
        return self._estimate(comparisons, *self._plan(comparisons))

    def judge(self, comparisons: Sequence[Comparison]) -> list[Judgement]:
        """The judgement of each comparison, in their order; prints an estimate on stderr, and shows progress.

        Raises UserError before the first request if there are more than max_calls to make, and if the endpoint cannot
        be used; what was answered until then is in the cache. Requests without a verdict raise nothing.
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
        # asyncio looks names up in its executor, and would wait for a lookup that hangs when ^C ends the run
        asyncio.get_running_loop().set_default_executor(DaemonExecutor(settings.concurrency))
        timeout = openai.Timeout(settings.timeout, connect=min(settings.timeout, CONNECT_SECONDS))
        client = openai.AsyncOpenAI(api_key=self._api_key, base_url=self.endpoint, timeout=timeout, max_retries=0)
        sender = Sender(client, self.endpoint, settings, self.usage, self._api_key)
        queue = iter(requests.items())

        async def work() -> None:
            for key, texts in queue:  # the workers share it
                try:
                    answer = await sender.ask(build_prompt(self._template, *texts))
                except Stopped:
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
                sender.stop.set()  # a worker whose cancellation is lost in a library sends nothing more
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


# --- flags -----------------------------------------------------------------------------------------------------------

_FLAGS = (
    "judge_model", "base_url", "api_key", "judge_template", "judge_cache", "max_calls", "concurrency",
    "requests_per_minute",
)  # fmt: skip


def add_judge_flags(parser: argparse.ArgumentParser, switch: bool = True) -> None:
    """Add --use_gpt and what goes with it. judge_from_flags() reads them.

    switch: without it there is no --use_gpt; the command asks for the judge in another way and sets args.use_gpt.
    """
    flags = parser.add_argument_group(
        "judge", "a language model compares the texts too, behind any OpenAI-compatible endpoint"
    )
    # no defaults here: a flag given without --use_gpt must show
    if switch:
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


def judge_from_flags(args: argparse.Namespace, results_folder: Path, asked_by: str = "--use_gpt") -> Judge | None:
    """The judge that the flags ask for; None without --use_gpt. Reads the key out of `args`, so that nobody stores it.

    asked_by: what sets args.use_gpt, for messages. Raises UserError for judge flags without it, a missing key, and
    what Judge() refuses. Sends nothing.
    """
    given = {name: getattr(args, name) for name in _FLAGS if getattr(args, name) is not None}
    args.api_key = None
    if not args.use_gpt:
        if given:
            raise UserError(f"--{next(iter(given))} goes with {asked_by}; add {asked_by} or drop it")
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
    local = is_near(urlsplit(endpoint).hostname)
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
        raise UserError(f"the judge's template {path} cannot be read ({why}); fix --judge_template") from None
    settings = JudgeSettings(
        template,
        given.pop("judge_cache", results_folder / CACHE_NAME),
        **{{"judge_model": "model"}.get(name, name): value for name, value in given.items()},
    )
    return Judge(settings, api_key)
