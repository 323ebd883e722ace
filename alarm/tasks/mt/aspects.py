"""Machine translation: the data, and the rewards for readability, grammar and confidence.

Importing this module loads no torch: what can be checked without a model is checked first.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from trl.paths import is_local_path

from ...common.distinct import distinct
from ...common.errors import UserError
from ...common.files import is_text, read_rows
from ...types import AspectScore, Rollout
from ..spans import token_offsets
from .grammar.checker import Checker, mark_tokens

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

ASPECTS = ("readability", "grammar", "confidence")

FILE_ENDINGS = (".json", ".jsonl", ".ndjson", ".gz", ".parquet", ".csv", ".tsv", ".txt")
DATASET, CONFIG = "Helsinki-NLP/europarl", "en-es"
MAX_ROWS, MAX_DEV_ROWS = 100_000, 2_000
TEST_SHARE, DEV_SHARE, SPLIT_SEED = 0.3, 0.1, 42

# --- data ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Splits:
    """Rows of the form {"translation": {"es": ..., "en": ...}}."""

    train: list[dict]
    dev: list[dict]
    test: list[dict]


def load_rows(source: str | Path, limit: int | None = None) -> list[dict]:
    """The first `limit` rows of a JSON list, JSON lines or parquet file, of a data set's folder, or of a hub id.

    The content of a file tells its format, and not its name. JSON may be gzip-compressed.
    Rows without a text under `es` or `en` are left out, counted and named in the log.
    Raises UserError where the source cannot be read, and where no row is left.
    """
    return _usable(_read(source, limit), source)


def load_splits(source: str | Path = DATASET) -> Splits:
    """Train, dev and test rows of one source: of its first 100,000 rows 30% are test, of the others 10% dev.

    Both splits with seed 42, dev cut to 2,000 rows, as the published data were split.
    """
    import datasets

    rows = _read(source, MAX_ROWS)
    if len(rows) < 4:
        raise UserError(f"{source} has {len(rows)} rows, too few to split; give --train_file, --dev_file, --test_file")
    # the permutation depends on the number of rows and the seed alone, so that numbers can stand for the rows
    first = datasets.Dataset.from_dict({"row": range(len(rows))}).train_test_split(TEST_SHARE, seed=SPLIT_SEED)
    second = first["train"].train_test_split(DEV_SHARE, seed=SPLIT_SEED)
    parts = {"train": second["train"], "dev": second["test"], "test": first["test"]}
    chosen = {name: [rows[i] for i in part["row"]] for name, part in parts.items()}
    chosen["dev"] = chosen["dev"][:MAX_DEV_ROWS]
    return Splits(**{name: _usable(part, f"{source} ({name})") for name, part in chosen.items()})


def prompt(row: dict) -> str:
    """What the policy reads."""
    return f"translate Spanish to English: {row['translation']['es']}"


def _read(source: str | Path, limit: int | None) -> list[dict]:
    path = Path(source)
    parquet = path.is_file() and _is_parquet(path)
    if (path.is_file() and not parquet) or _is_absent_file(source):
        return read_rows(path)[:limit]
    import datasets

    rows = "train" if limit is None else f"train[:{limit}]"
    try:
        if parquet:
            return datasets.load_dataset("parquet", data_files=str(path), split=rows).to_list()
        return datasets.load_dataset(str(source), CONFIG, split=rows).to_list()
    except Exception as error:  # datasets raises its own, pyarrow's, the hub client's and OSErrors
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"the data set {source} cannot be loaded ({type(error).__name__}: {reason}); "
            "give local files by --train_file, --dev_file and --test_file"
        ) from error


def _is_parquet(path: Path) -> bool:
    try:
        with open(path, "rb") as file:
            return file.read(4) == b"PAR1" or path.suffix.lower() == ".parquet"
    except OSError:
        return False  # the reader of JSON reports it


def _is_absent_file(source: str | Path) -> bool:
    """Whether a source that is not there was meant as a file: by its ending, or as it can be no hub id."""
    path = Path(source)
    return not path.exists() and (path.suffix.lower() in FILE_ENDINGS or is_local_path(source))


def _is_usable(row: dict) -> bool:
    pair = row.get("translation")
    return isinstance(pair, dict) and all(is_text(pair.get(k)) and pair[k].strip() for k in ("es", "en"))


def _usable(rows: list[dict], source: str | Path) -> list[dict]:
    bad = [number for number, row in enumerate(rows, start=1) if not _is_usable(row)]
    if bad:
        form = '{"translation": {"es": ..., "en": ...}}'
        what = f"rows without text under 'es' or 'en' (first: row {bad[0]}; expected {form}, which UTF-8 can hold)"
        if len(bad) == len(rows):
            raise UserError(f"{source}: all {len(rows)} are {what}; fix the file")
        logger.warning("%s: left out %d of %d: %s", source, len(bad), len(rows), what)
    return [row for row in rows if _is_usable(row)]


# --- rewards ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MTSettings:
    """The constants that normalise readability, and the rewards of single tokens for grammar."""

    readability_mean: float = 11.19907041598879
    readability_std: float = 6.04405504045225
    grammar_correct_reward: float = 0.0
    grammar_incorrect_reward: float = -1.0
    sigmoid_shaping: bool = False

    @classmethod
    def from_flags(cls, args) -> MTSettings:
        """From parsed flags of the same names."""
        return cls(**{field.name: getattr(args, field.name) for field in fields(cls)})


def readability_grade(text: str) -> float:
    """Flesch-Kincaid grade, as textstat 0.7.4 counts words and syllables; -15.7 for a text without words."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # textstat 0.7.4 imports pkg_resources
        import textstat
    return float(textstat.flesch_kincaid_grade(text))


class EnglishConfidence:
    """Lingua's probability that a text is English rather than Spanish; 0 for a text without words."""

    def __init__(self):
        self._detector = None

    def __call__(self, text: str) -> float:
        from lingua import Language, LanguageDetectorBuilder

        if self._detector is None:
            self._detector = LanguageDetectorBuilder.from_languages(Language.ENGLISH, Language.SPANISH).build()
        # the last bits differ from call to call (it sums in no fixed order), and a run must be repeatable
        return round(self._detector.compute_language_confidence(text, Language.ENGLISH), 9)


class MTAspects:
    """Readability, grammar and confidence of a rollout.

    Args:
        checker: finds grammar errors (see grammar.make_checker).
        tokenizer: the policy's.
        settings: MTSettings.

    A translation without text is defined and counted in `empty`: no grammar error (every token gets the reward of a
    correct one), error rate 0, confidence 0, and the grade of no words, -15.7, before normalisation.
    """

    def __init__(self, checker: Checker, tokenizer: PreTrainedTokenizerBase, settings: MTSettings | None = None):
        self.checker = checker
        self.tokenizer = tokenizer
        self.settings = settings or MTSettings()
        self.confidence = EnglishConfidence()
        self.empty = 0

    def __call__(self, rollout: Rollout, names: Iterable[str] = ASPECTS) -> dict[str, AspectScore]:
        """Score a rollout. -> the named aspects, rewards B x (T_i,) float32 on the CPU.

        Metrics, before any shaping: readability (z-normalised grade), language_confidence, grammar_errors (matches),
        error_rate (matches / tokens, the end of sequence among them).
        Raises GrammarServiceError where the grammar service fails for good.
        """
        self.empty += sum(not text.strip() for text in rollout.responses)
        score = {"readability": self._readability, "grammar": self._grammar, "confidence": self._confidence}
        return {name: score[name](rollout) for name in names}

    def _shape(self, values: Tensor) -> Tensor:
        from ...rewards import sigmoid_shape

        return sigmoid_shape(values) if self.settings.sigmoid_shaping else values

    def _on_last_token(self, rollout: Rollout, values: list[float]) -> list[Tensor]:
        import torch

        rewards = [torch.zeros(len(ids)) for ids in rollout.response_ids]
        for row, value in zip(rewards, self._shape(torch.tensor(values, dtype=torch.float64)), strict=True):
            row[-1:] = value
        return rewards

    def _readability(self, rollout: Rollout) -> AspectScore:
        s = self.settings
        values = [(readability_grade(text) - s.readability_mean) / s.readability_std for text in rollout.responses]
        return AspectScore(self._on_last_token(rollout, values), {"readability": values})

    def _confidence(self, rollout: Rollout) -> AspectScore:
        texts, places = distinct(rollout.responses)
        found = [self.confidence(text) for text in texts]
        values = [found[place] for place in places]
        return AspectScore(self._on_last_token(rollout, values), {"language_confidence": values})

    def _grammar(self, rollout: Rollout) -> AspectScore:
        import torch

        decoded = [token_offsets(self.tokenizer, ids) for ids in rollout.response_ids]
        matches = self.checker.check([text for text, _ in decoded])
        values = [self.settings.grammar_correct_reward, self.settings.grammar_incorrect_reward]
        correct, incorrect = self._shape(torch.tensor(values))
        rewards = [
            torch.where(torch.tensor(mark_tokens(offsets, found), dtype=torch.bool), incorrect, correct)
            for (_, offsets), found in zip(decoded, matches, strict=True)
        ]
        errors = [len(found) for found in matches]
        rates = [len(found) / max(len(ids), 1) for found, ids in zip(matches, rollout.response_ids, strict=True)]
        return AspectScore(rewards, {"grammar_errors": errors, "error_rate": rates})
