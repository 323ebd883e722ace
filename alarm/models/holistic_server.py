"""The holistic model behind vLLM's classification endpoint: token ids go there, raw scores come back.

vLLM's documented API is spoken: GET /v1/models and POST /classify
(https://docs.vllm.ai/en/latest/models/pooling_models/classify.html).
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..common.errors import ServiceError, UserError
from ..common.files import is_finite_number
from ..common.flags import HOLISTIC_KEY, holistic_key
from ..common.service import LONGEST_PAUSE, PAUSE, Patience, ServerFailure, answer_all, open_session, refusal, send
from .holistic import ROLE, HolisticReader, probe_difference
from .load import load_config, load_tokenizer, position_limit

logger = logging.getLogger(__name__)

Row = Sequence[int]

PASSING = (408, 409, 429)  # statuses, beside those from 500 on, that a new attempt can change
SAME = 1e-3  # scores that lie nearer are taken for equal where the activation is looked for


class HolisticServer(HolisticReader):
    """A holistic model that somebody else runs.

    Args:
        url: of the server, without a path.
        name_or_path: the model's folder or hub name, of which config and tokenizer are read, and no weights.
        in_flight: requests at a time.
        timeout: seconds after which a request counts as lost.
        max_failures: rounds in a row without one request answered, after which the run ends.
        pause: seconds before the first new attempt; doubles with each.

    `connect` comes first. Raises UserError if config or tokenizer cannot be read.
    """

    def __init__(
        self,
        url: str,
        name_or_path: str | Path,
        in_flight: int = 8,
        timeout: float = 120.0,
        max_failures: int = 6,
        pause: float = PAUSE,
    ):
        super().__init__(load_config(name_or_path, ROLE), load_tokenizer(name_or_path, ROLE))
        self.url = url
        self.name = str(name_or_path)
        self.in_flight = in_flight
        self.timeout = timeout
        self.max_failures = max_failures
        self.pause = pause
        self.model = ""  # its name on the server
        self.failures = 0  # rounds of requests that ended early, so far
        self._key = holistic_key()
        self._session = open_session(False, in_flight)
        self._probe: list[float] | None = None  # scores of PROBE, once they are known
        self._longest = 0  # tokens that inputs can have
        self._lost = False  # whether another model can have taken its place since

    # --- the model behind the address --------------------------------------------------------------------------------

    def connect(self, max_length: int) -> None:
        """Find the model and check that raw scores of inputs with `max_length` tokens come from it.

        Raises UserError if no server is there, and for what the checks find.
        """
        self._longest = min(max_length, position_limit(self.config, self.tokenizer))

        def not_there(failure: ServerFailure, *_) -> None:
            raise UserError(f"no vLLM at --holistic_server {self.url}: {failure}; start one, or fix the address")

        answer_all(["model"], lambda: self._check, 1, self._patience, not_there, {})

    def probe(self) -> list[float]:
        """Raw scores of PROBE, as they were when the server was checked first."""
        return list(self._probe or ())

    def _check(self, _: str = "") -> None:
        """Compare the server's model with the one that was there before; find out whether its scores are raw."""
        self.model = self._find_model()
        rows = self.probe_rows()
        raw, activated = self._ask(rows), self._ask(rows, use_activation=True)
        # an old vLLM does not know `use_activation` and applies its sigmoid in silence
        same = max(abs(a - b) for a, b in zip(raw, activated, strict=True)) < SAME
        if same and all(0 <= score <= 1 for score in raw):
            raise self._error(
                "its scores lie between 0 and 1 and are the same with and without an activation, so they may be those "
                "of a sigmoid; take a vLLM that knows `use_activation`"
            )
        if self._probe is not None and (found := probe_difference(self._probe, raw)):
            raise self._error(f"its model has changed while it was away: {found}; start the old one and go on")
        self._probe = self._probe or raw
        self._lost = False

    def _find_model(self) -> str:
        """The name by which requests ask for the model. UserError if it is not clear, or reads too little."""
        reply = self._send("GET", "/v1/models")
        try:
            cards = [card for card in reply["data"] if not card.get("parent")]  # adapters have one
            named = [card for card in cards if self.name in (card["id"], card.get("root"))]
            names = [str(card["id"]) for card in cards]
            card = (named or cards)[0] if named or len(cards) == 1 else None
            limit = card and card.get("max_model_len")
        except (AttributeError, KeyError, TypeError, IndexError):
            raise self._error(f"its list of models cannot be read: {json.dumps(reply)[:200]}") from None
        if card is None:
            raise self._error(f"it serves {', '.join(names) or 'no model'}; serve {self.name} alone")
        if is_finite_number(limit) and limit < self._longest:
            raise self._error(f"it reads {limit} tokens, of {self._longest}; give vLLM --max-model-len {self._longest}")
        return str(card["id"])

    # --- scores ------------------------------------------------------------------------------------------------------

    def score_rows(self, rows: Sequence[Row], batch_size: int) -> Tensor:
        """Raises ServiceError if the server fails for good, or answers what is no list of scores."""
        # the longest first, so that none is left to be waited for alone
        order = sorted(range(len(rows)), key=lambda i: (-len(rows[i]), i))
        parts = [tuple(order[start : start + batch_size]) for start in range(0, len(order), batch_size)]
        found: dict[tuple[int, ...], list[float]] = {}

        def begin() -> Callable[[tuple[int, ...]], list[float]]:
            if self._lost:
                self._check()
            return lambda part: self._ask([rows[i] for i in part])

        answer_all(parts, begin, self.in_flight, self._patience, self._failed, found)
        scores = torch.zeros(len(rows))
        for part, values in found.items():
            scores[list(part)] = torch.tensor(values)
        return scores

    def _failed(self, failure: ServerFailure, failures: int, waiting: Sequence) -> None:
        self.failures += 1
        self._lost |= failure.lost
        if failures >= self.max_failures:
            raise ServiceError(
                f"the holistic server {self.url} failed {failures} times in a row, last: {failure}; start it again "
                "and go on with --resume"
            )
        logger.warning(
            "the holistic server failed (%d in a row): %s; %d requests go again", failures, failure, len(waiting)
        )
        time.sleep(min(self.pause * 2 ** (failures - 1), LONGEST_PAUSE))

    def _patience(self) -> Patience:
        return Patience("the holistic server", "or give another --holistic_server", pause=self.pause)

    # --- one request -------------------------------------------------------------------------------------------------

    def _ask(self, rows: Sequence[Row], use_activation: bool = False) -> list[float]:
        """The server's scores of some rows of token ids."""
        # `activation`, its older name, is read as True by some versions, whatever it is
        content = {"model": self.model, "input": [list(row) for row in rows], "use_activation": use_activation}
        reply = self._send("POST", "/classify", json=content | {"add_special_tokens": False})
        try:
            return read_scores(reply, rows)
        except ValueError as error:
            raise self._error(f"{error}") from None

    def _send(self, method: str, path: str, **content) -> object:
        """The decoded answer. Raises ServerFailure for what a new attempt can change, ServiceError for all else."""
        response = send(
            self._session, method, self.url + path, self.timeout, auth=self._authorise, allow_redirects=False, **content
        )
        status = response.status_code
        if status == 200:
            try:
                return response.json()
            except (ValueError, RecursionError):
                raise ServerFailure(f"its answer is not JSON: {response.text[:100]!r}") from None
        says = self._without_key(" ".join(response.text.split())[:300])
        if status in PASSING or status >= 500:
            raise refusal(response, f"it answered {status} ({says})")
        if status in (401, 403):
            raise self._error(f"it refuses the key ({status}); set {HOLISTIC_KEY}")
        hint = ""
        if status == 404:
            hint = "; serve a sequence classifier by `vllm serve MODEL --runner pooling`"
        elif 300 <= status < 400:
            hint = "; give the address that it points to"
        raise self._error(f"it answered {status} to {method} {path} ({says}){hint}")

    def _authorise(self, request):
        """For requests, which otherwise looks for a password in ~/.netrc."""
        if self._key is not None:
            request.headers["Authorization"] = f"Bearer {self._key}"
        return request

    def _without_key(self, text: str) -> str:
        return text if self._key is None else text.replace(self._key, "[key]")

    def _error(self, what: str) -> ServiceError:
        return ServiceError(f"the holistic server {self.url}: {what}")


def read_scores(reply: object, rows: Sequence[Row]) -> list[float]:
    """The score of each of some rows of token ids, from a decoded answer of /classify.

    Raises ValueError, which says what is wrong, if it is none of exactly these rows with one finite number each.
    """
    try:
        data = reply["data"]
        indices, numbers = [item["index"] for item in data], [item["probs"] for item in data]
        read = reply["usage"]["prompt_tokens"]
        counts = {len(values) for values in numbers}
    except (KeyError, TypeError):
        raise ValueError(f"its answer is no list of classifications: {json.dumps(reply)[:200]}") from None
    if len(data) != len(rows):
        raise ValueError(f"it gave {len(data)} scores for {len(rows)} texts")
    if indices != list(range(len(rows))):
        raise ValueError(f"its scores are not in the order of the texts: {str(indices)[:100]}")
    if counts - {1}:
        raise ValueError(f"it gives {max(counts)} numbers for a text; serve a model with one label")
    if read != (sent := sum(map(len, rows))):
        raise ValueError(f"it read {read} tokens where {sent} were sent")
    scores = [values[0] for values in numbers]
    if wrong := [score for score in scores if not is_finite_number(score)]:
        raise ValueError(f"{len(wrong)} of its {len(scores)} scores are no finite numbers, such as {wrong[0]}")
    return [float(score) for score in scores]
