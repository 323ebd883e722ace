"""OpenRLHF: a file with `reward_func = reward.openrlhf("POLICY")`, or a server for `--reward.remote_url`.

Lost: the tokens. OpenRLHF scores one answer a call, so that nothing can compare the answers to one prompt.
"""

from __future__ import annotations

import errno
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

from ..common.errors import UserError
from .host import Host, stopping

if TYPE_CHECKING:
    from ..hierarchical import HierarchicalReward


class OpenRLHFReward:
    """`reward_func(queries, prompts, labels)`. The answer is what follows the prompt in a query, less special tokens.

    tokenizer: of the policy, or its name. prompt: the field of the label that holds the prompt as the reward reads it;
    default: the prompt that OpenRLHF passes, with its chat template. The row is the label: a JSON object or, if it is
    none, {"label": label}. OpenRLHF goes on without a reward after an exception: here one ends the process.
    """

    def __init__(self, reward: HierarchicalReward, tokenizer, prompt: str | None = None, **settings):
        if isinstance(tokenizer, str):
            from transformers import AutoTokenizer

            tokenizer = AutoTokenizer.from_pretrained(tokenizer)
        self.host = Host(reward, "OpenRLHF", alone=True, **settings)
        self.tokenizer, self.prompt, self.special = tokenizer, prompt, set(tokenizer.all_special_tokens)

    def score(self, queries, prompts, labels) -> dict:
        """rewards, scores and extra_logs: B numbers each."""
        answers = [self._answer(query, prompt) for query, prompt in zip(queries, prompts, strict=True)]
        rows = [_row(label) for label in labels]
        if self.prompt is not None:
            if any(self.prompt not in row for row in rows):
                raise UserError(f"a label has no field {self.prompt!r}; put the prompt there when you prepare the data")
            prompts = [row[self.prompt] for row in rows]
        parts = self.host.score(list(prompts), answers, rows)
        totals = self.host.totals(parts)
        return {"rewards": totals, "scores": totals, "extra_logs": self.host.columns(parts)}

    @stopping
    def __call__(self, queries, prompts, labels, **_) -> dict:
        import torch

        found = self.score(queries, prompts, labels)
        logs = {name: torch.tensor(values) for name, values in found["extra_logs"].items()}
        return {"rewards": torch.tensor(found["rewards"]), "scores": torch.tensor(found["scores"]), "extra_logs": logs}

    def _answer(self, query: str, prompt: str) -> str:
        start = query.find(prompt)
        if start < 0:
            raise UserError(
                f"a query does not contain its prompt {prompt[:60]!r}: it was cut, or the tokenizer changes it; "
                "raise the length of prompts, or give them as the tokenizer decodes them"
            )
        answer = query[start + len(prompt) :]
        for token in self.special:
            answer = answer.replace(token, "")
        return answer


def _row(label: object) -> dict:
    try:
        row = json.loads(label) if isinstance(label, str) else label
    except ValueError:
        row = None
    return row if isinstance(row, dict) else {"label": label}


def serve(function: OpenRLHFReward, port: int, host: str) -> None:
    """Answer POST {"query": [...], "prompts": [...], "labels": [...]} until ^C. Prints where it listens.

    Listens to this machine alone unless `host` is another address: whoever reaches it can use it. A request that is no
    such object gets 400 and is no error of the reward. If the reward fails, the server ends, so that no client goes on.
    """
    failed: list[Exception] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            try:
                body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))))
                lists = [body[name] for name in ("query", "prompts", "labels")]
                if not all(isinstance(values, list) for values in lists):
                    raise TypeError("not lists")
            except (ValueError, KeyError, TypeError, RecursionError):
                return self.reply(400, {"error": 'send {"query": [...], "prompts": [...], "labels": [...]}'})
            try:
                self.reply(200, function.score(*lists))
            except Exception as error:
                failed.append(error)
                self.reply(500, {"error": str(error)})
                threading.Thread(target=self.server.shutdown).start()  # it waits for this very thread

        def reply(self, status: int, found: dict) -> None:
            data = json.dumps(found).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_) -> None:
            """No line for each request."""

    try:
        server = ThreadingHTTPServer((host, port), Handler)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        raise UserError(f"port {port} of {host} is used by another process; give another port") from error
    print(f"rewards at http://{host}:{server.server_port}/", flush=True)
    with server:
        server.serve_forever()
    if failed:
        raise failed[0]
