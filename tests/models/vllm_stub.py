"""A stand-in for `vllm serve MODEL --runner pooling` in tests: the documented answers, scores of a real model, faults.

python tests/models/vllm_stub.py --model FOLDER --port 8000
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import threading
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler
from pathlib import Path

if __name__ == "__main__":  # pytest has the folder on its path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from http_stub import HttpStub, Response, send_response

Scores = Callable[[Sequence[Sequence[int]]], list[float]]


def answer(content: object, status: int = 200, **headers: str) -> Response:
    """JSON. Header names: with _ for -."""
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    return status, {"Content-Type": "application/json", **headers}, json.dumps(content)


def error(status: int, message: str, **headers: str) -> Response:
    """An error as vLLM words it."""
    return answer({"error": {"message": message, "type": "stub", "param": None, "code": status}}, status, **headers)


def classification(probs: Sequence[Sequence[float]], tokens: int, model: str = "stub") -> Response:
    data = [
        {"index": i, "label": "LABEL_0", "probs": list(values), "num_classes": len(values)}
        for i, values in enumerate(probs)
    ]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0, "prompt_tokens_details": None}
    return answer({"id": "classify-stub", "object": "list", "created": 0, "model": model, "data": data, "usage": usage})


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


class VllmStub(HttpStub):
    """scores: rows of token ids -> raw scores. activation: what vLLM applies unless `use_activation` is false. old: it
    does not know `use_activation`. respond: called with the path, the request and its number (from 0, of all of them)
    before all else; None: as usual; "drop": the connection ends in the middle of the answer; "hang": no answer for
    `hang` s.
    """

    def __init__(
        self,
        scores: Scores,
        name: str = "stub",
        activation: Callable[[float], float] = sigmoid,
        old: bool = False,
        key: str | None = None,
        max_model_len: int | None = 4096,
        respond: Callable[[str, dict, int], Response | str | None] | None = None,
        hang: float = 2.0,
        port: int = 0,
    ):
        super().__init__(port)
        self.scores, self.name, self.activation, self.old, self.key = scores, name, activation, old, key
        self.max_model_len, self.respond, self.hang = max_model_len, respond, hang
        self.cards = [{"id": name, "object": "model", "root": name, "parent": None, "max_model_len": max_model_len}]
        self._model = threading.Lock()

    def asked(self, path: str = "/classify") -> list[dict]:
        """The requests to a path so far."""
        with self.lock:
            return [entry["request"] for entry in self.log if entry["path"] == path]

    def serve(self, handler: BaseHTTPRequestHandler) -> None:
        request = json.loads(handler.rfile.read(int(handler.headers["Content-Length"] or 0)) or "{}")
        if self.closing.is_set():  # on a connection from before the end
            handler.close_connection = True
            return
        with self.lock:
            number = len(self.log)
            self.in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self.in_flight)
            headers = {"authorization": handler.headers["Authorization"]}
            self.log.append({"path": handler.path, "request": request, **headers})
        planned = self.respond(handler.path, request, number) if self.respond else None
        response = planned if isinstance(planned, tuple) else self._response(handler, request)
        with self.lock:  # before the client can know, or it could send the next one first
            self.in_flight -= 1
        if planned == "hang":
            self.closing.wait(self.hang)
            handler.close_connection = True
            return
        send_response(handler, response, 0.5 if planned == "drop" else 1.0)

    def _response(self, handler: BaseHTTPRequestHandler, request: dict) -> Response:
        if self.key is not None and handler.headers["Authorization"] != f"Bearer {self.key}":
            return answer({"error": "Unauthorized"}, 401)
        if handler.path == "/v1/models":
            return answer({"object": "list", "data": self.cards})
        if handler.path != "/classify":
            return answer({"detail": "Not Found"}, 404)
        if request.get("model", self.name) != self.name:
            return error(404, f"The model `{request['model']}` does not exist.")
        rows = request["input"]
        if longest := [len(row) for row in rows if self.max_model_len is not None and len(row) > self.max_model_len]:
            return error(400, f"This model's maximum context length is {self.max_model_len} tokens, not {longest[0]}.")
        with self._model:
            found = self.scores(rows)
        if self.old or request.get("use_activation", True):
            found = [self.activation(score) for score in found]
        return classification([[score] for score in found], sum(map(len, rows)), self.name)


def model_scores(folder) -> Scores:
    """Of a holistic model, loaded here: row by row, so that no row depends on others."""
    from alarm.models.holistic import HolisticModel

    model = HolisticModel.load(folder)
    return lambda rows: [model.score_rows([row], 1).item() for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--port", type=int, default=8000)
    args = parser.parse_args()
    with VllmStub(model_scores(args.model), args.model, port=args.port) as stub:
        print(stub.url, flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
