"""What a judge is asked, what its replies mean, and the file in which they are kept."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import string
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ...common.errors import UserError
from .verdicts import read_verdict

PLACEHOLDERS = {"query", "output_a", "output_b"}

# why a request has no verdict
REFUSED, UNREADABLE, TOO_LONG, UNANSWERED = "refused", "unreadable", "too long", "unanswered"


def parse_template(text: str) -> string.Template:
    """A judge's template. Raises UserError if a placeholder is missing, unknown or malformed."""
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
    """The message that shows `first` as Output (a). Texts are put in literally."""
    prompt = template.substitute(query=query, output_a=first, output_b=second)
    return prompt.encode("utf-8", "replace").decode("utf-8")  # half a surrogate pair cannot be sent


class MalformedReply(Exception):
    """Something came back that is no chat completion."""


@dataclass(frozen=True)
class Answer:
    """What came of one request."""

    preferred: str | None  # "a": the text shown first, "b": the second, None: no verdict
    reply: str  # as it came; without a reply, the reason
    failure: str | None = None  # the kind, without a verdict
    prompt_tokens: int = 0
    completion_tokens: int = 0


def read_answer(body: object) -> Answer:
    """The answer in a decoded chat completion. Raises MalformedReply if there is none.

    A reply that was cut off at MAX_TOKENS needs its verdict on a whole line.
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
    preferred = read_verdict(content)
    if finish == "length" and read_verdict(content.rpartition("\n")[0]) != preferred:
        preferred = None
    return Answer(preferred, content, None if preferred else UNREADABLE, *tokens)


def request_key(endpoint: str, model: str, template: str, query: str, first: str, second: str) -> str:
    """The name of a request in the cache: equal only if all six are."""
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
                # the reply is read again: an earlier version may have misread it
                if record["preferred"] in ("a", "b") and (preferred := read_verdict(record["reply"])):
                    self.preferred[record["key"]] = preferred
            except (ValueError, KeyError, TypeError):
                raise UserError(
                    f"the judge's cache {self.path}, line {number} is no answer of a judge; fix it or give another "
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
        """Write one answer down. Raises UserError if the disk is full."""
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
