"""An OpenAI-compatible chat endpoint for tests: its verdicts depend on the texts alone, its faults can be planned.

A text says how good it is by `quality=NN`. Of the two in a prompt the higher wins; equal ones are told apart by place:
the first always wins. Texts with `vague` in them are answered by "Output (c)", with `forbidden` by a refusal.

    python tests/evaluation/judge_stub.py --port 8000 --faults 0.2 --latency 0.05
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path

if __name__ == "__main__":  # pytest has the folder on its path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from http_stub import HttpStub, Response, send_response

PASSING = ("429", "500", "timeout", "truncated", "str")  # faults of a prompt's first attempt
LASTING = ("refusal", "output (c)")  # faults that asking again would repeat
FAULTS = PASSING + LASTING


def completion(content: str | None, refusal: str | None = None, finish: str = "stop") -> Response:
    """A well-formed chat completion."""
    message = {"role": "assistant", "content": content, "refusal": refusal}
    body = {
        "id": "stub",
        "object": "chat.completion",
        "created": 0,
        "model": "stub",
        "choices": [{"index": 0, "message": message, "finish_reason": finish}],
        "usage": {"prompt_tokens": 100, "completion_tokens": 4, "total_tokens": 104},
    }
    return 200, {"Content-Type": "application/json"}, json.dumps(body)


def error(status: int, message: str, code: str | None = None, **headers: str) -> Response:
    """An error as OpenAI words it. Header names: with _ for -."""
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    body = {"error": {"message": message, "type": "stub", "param": None, "code": code}}
    return status, {"Content-Type": "application/json", **headers}, json.dumps(body)


def verdict(prompt: str) -> Response:
    if "forbidden" in prompt:
        return completion(None, refusal="I cannot help with that.")
    if "vague" in prompt:
        return completion("Output (c)")
    first, second = map(int, re.findall(r"quality=(\d+)", prompt))
    return completion("Output (a)" if first >= second else "Output (b)")


def biased_verdict(prompt: str, _attempt: int = 0) -> Response:
    """For any texts in eval/judge_prompt.txt: the first wins, unless the second has a fifth more words."""
    body = prompt.rpartition("\n\nLook first")[0].rpartition("\n\nOutput (a):\n")[2]
    first, _, second = body.partition("\n\nOutput (b):\n")
    return completion("Output (b)" if len(second.split()) > 1.2 * len(first.split()) else "Output (a)")


def planned_fault(prompt: str, share: float) -> str | None:
    """The fault that the hash of a prompt gives it; all kinds alike."""
    number = int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:8], "big")
    return FAULTS[(number // 10_000) % len(FAULTS)] if number % 10_000 < share * 10_000 else None


class JudgeStub(HttpStub):
    """faults: share of the prompts that meet one. latency: seconds before an answer. hang: seconds that a request waits
    which is never answered. respond: called with the prompt and the attempt (from 0) before all else; None: as usual.
    """

    def __init__(
        self,
        faults: float = 0.0,
        latency: float = 0.0,
        hang: float = 2.0,
        retry_after: str = "0.05",
        respond: Callable[[str, int], Response | None] | None = None,
        port: int = 0,
    ):
        super().__init__(port)
        self.faults, self.latency, self.hang, self.retry_after = faults, latency, hang, retry_after
        self.respond = respond
        self.url += "/v1"
        self._attempts: dict[str, int] = {}

    def answered(self) -> list[str]:
        """The prompts that were answered by a whole completion, in order, repeats included."""
        with self.lock:
            return [entry["prompt"] for entry in self.log if entry["outcome"] in ("answer", *LASTING)]

    def serve(self, handler: BaseHTTPRequestHandler) -> None:
        request = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        prompt = request["messages"][0]["content"]
        with self.lock:
            attempt = self._attempts.get(prompt, 0)
            self._attempts[prompt] = attempt + 1
            self.in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self.in_flight)
            entry = {
                "prompt": prompt,
                "attempt": attempt,
                "at": time.monotonic(),
                "outcome": "begun",
                "path": handler.path,
                "authorization": handler.headers["Authorization"],
                "request": request,
            }
            self.log.append(entry)
        outcome, response = self._response(prompt, attempt)
        with self.lock:  # before the client can know, or it could send the next one first
            entry["outcome"] = outcome
            self.in_flight -= 1
        if response is None:
            self.closing.wait(self.hang)
            handler.close_connection = True
            return
        send_response(handler, response)

    def _response(self, prompt: str, attempt: int) -> tuple[str, Response | None]:
        """What happened, and what to send; None: nothing, ever."""
        if self.respond and (planned := self.respond(prompt, attempt)):
            self.closing.wait(self.latency)
            return ("answer" if planned[0] == 200 else str(planned[0])), planned
        fault = planned_fault(prompt, self.faults)
        if fault in PASSING and attempt > 0:
            fault = None
        if fault == "timeout":
            return fault, None
        self.closing.wait(self.latency)
        if fault == "429":
            return fault, error(429, "slow down", Retry_After=self.retry_after)
        if fault == "500":
            return fault, error(500, "the server had an error")
        if fault == "truncated":
            status, headers, body = completion("Output (a)")
            return fault, (status, headers, body[: len(body) // 2])
        if fault == "str":
            return fault, (200, {"Content-Type": "text/html"}, "<html>busy</html>")
        if fault == "refusal":
            return fault, completion(None, refusal="I cannot help with that.")
        if fault == "output (c)":
            return fault, completion("Output (c)")
        return "answer", verdict(prompt)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--faults", type=float, default=0.0, help="share of the prompts that meet a fault")
    parser.add_argument("--latency", type=float, default=0.0, help="seconds before an answer")
    parser.add_argument("--biased", action="store_true", help="judge any texts, by their place and length")
    args = parser.parse_args()
    respond = biased_verdict if args.biased else None
    with JudgeStub(args.faults, args.latency, port=args.port, respond=respond) as stub:
        print(stub.url, flush=True)
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            print(f"{len(stub.log)} requests, {len(stub.answered())} answered")


if __name__ == "__main__":
    main()
