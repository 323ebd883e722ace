"""Load a model only if its checkpoint holds its weights. What does not fit is refused by name, in one line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn

# buffers without information, which older versions of transformers saved with the weights
_OLD_BUFFERS = ("position_ids", "inv_freq", "masked_bias")


class WeightsError(ValueError):
    """The weights of a checkpoint are not those of the model. The message starts with the checkpoint's path."""


@dataclass(frozen=True)
class Heads:
    """What differs by design between a checkpoint and a model that gets a new head."""

    new: list[str]  # weights that start at random
    unused: list[str]  # weights of the checkpoint that belong to another model's head


def some_names(names: Iterable[Any], limit: int = 4) -> str:
    names = sorted(str(name) for name in names)
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def load_whole(model_class: type, name_or_path: str, new_head: bool = False, **kwargs: Any) -> tuple[nn.Module, Heads]:
    """`model_class.from_pretrained`, for a model whose every weight comes from its checkpoint.

    new_head: the head may be new, if the checkpoint is one of another class (see `check_weights`)
    kwargs: to `from_pretrained`

    Raises WeightsError, naming the weights, if they do not fit.
    """
    # other shapes are let through here: check_weights names them in one line
    model, info = model_class.from_pretrained(
        name_or_path, output_loading_info=True, ignore_mismatched_sizes=True, **kwargs
    )
    shapes = {key: (tuple(found), tuple(due)) for key, found, due in info["mismatched_keys"]}
    heads = check_weights(model, name_or_path, info["missing_keys"], info["unexpected_keys"], shapes, new_head)
    return model, heads


def check_weights(
    model: nn.Module,
    name: str,
    missing: Iterable[str],
    extra: Iterable[str],
    shapes: dict[str, tuple[tuple[int, ...], tuple[int, ...]]],
    new_head: bool = False,
) -> Heads:
    """Compare the names of a checkpoint's weights with those of `model`, a transformers model.

    missing, extra: names that only the model or only the checkpoint has, less what transformers itself ignores
    shapes: weight -> (shape in the checkpoint, shape in the model) if they differ

    A weight of the model may be new only if `new_head` holds, the checkpoint's config names another class than the
    model's, and the weight lies in the head (outside of `model.base_model`) or in a pooler.

    An extra weight is left unused if it is a buffer of an older version, or if it belongs to a module that the model
    does not have: the head of another task, a pooler, a decoder behind an encoder. It is refused in a module that the
    model has (more layers than the config says, a bias, an adapter), and as a second copy under a prefix.

    Raises WeightsError otherwise.
    """
    missing, shapes = set(missing), dict(shapes)
    extra = {key for key in extra if key.split(".")[-1] not in _OLD_BUFFERS}
    body = f"{model.base_model_prefix}." if hasattr(model, model.base_model_prefix) else ""
    new: set[str] = set()
    if new_head and body and type(model).__name__ not in (model.config.architectures or ()):
        new = {key for key in missing | set(shapes) if _in_head(key, body)}
    absent, wrong = missing - new, {key: both for key, both in shapes.items() if key not in new}
    kind = type(model).__name__

    prefix = _prefix(extra, {spelling for key in absent or model.state_dict() for spelling in (key, _inner(key, body))})
    if prefix:
        shown = some_names([key for key in extra if key.startswith(prefix)], 2)
        raise WeightsError(
            f"{name} names weights with {prefix!r} in front ({shown}); "
            f"strip the prefix {prefix!r} from the names in the file"
        )
    if absent:
        instead = f" and holds {some_names(extra)} instead" if extra else ""
        raise WeightsError(
            f"{name} lacks weights of {kind}: {some_names(absent)}{instead}; give a whole checkpoint of this kind"
        )
    if wrong:
        listed = some_names(f"{key} ({found} where {due} is due)" for key, (found, due) in wrong.items())
        raise WeightsError(
            f"{name} holds weights of the wrong shape: {listed}; "
            "give a checkpoint with the config.json it was saved with"
        )
    have = {_part(key, body) for key in model.state_dict() if key not in new}
    unplaced = {key for key in extra if _part(key, body) in have}
    if unplaced:
        raise WeightsError(
            f"{name} holds weights for which {kind} has no place by its config.json: {some_names(unplaced)}; "
            "give a checkpoint with the config.json it was saved with"
        )
    return Heads(sorted(new), sorted(extra))


def _inner(key: str, body: str) -> str:
    """The name that a weight of the body has in a checkpoint of the body alone."""
    return key.removeprefix(body)


def _part(key: str, body: str) -> str:
    """The outermost module that a weight belongs to, seen from inside the body."""
    return _inner(key, body).split(".")[0]


def _in_head(key: str, body: str) -> bool:
    return not key.startswith(body) or _part(key, body) == "pooler"


def _prefix(extra: set[str], due: set[str]) -> str:
    """What most of the extra names have in front of a name that is due; "" if none has."""
    found: Counter[str] = Counter()
    for key in sorted(extra):
        dots = [at + 1 for at, letter in enumerate(key) if letter == "."]
        found.update([next((key[:at] for at in dots if key[at:] in due), "")])
    del found[""]
    return found.most_common(1)[0][0] if found else ""
