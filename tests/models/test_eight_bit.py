"""The holistic model with weights in 8 bits. Needs bitsandbytes, which is optional."""

from __future__ import annotations

import argparse
import importlib.util

import numpy as np
import pytest
import torch

from alarm.common.errors import UserError
from alarm.common.flags import check_holistic
from alarm.models.export import main as export
from alarm.models.holistic import HolisticModel
from helpers import CHECKPOINTS

ULTRARM = CHECKPOINTS / "tiny-ultrarm"


@pytest.mark.parametrize("layout", ["ultrarm", "classifier"])
def test_scores_differ_a_little_and_layers_have_a_byte_a_weight(layout, tmp_path):
    pytest.importorskip("bitsandbytes")
    folder = ULTRARM
    if layout == "classifier":
        folder = tmp_path / "classifier"
        export(["--holistic_model", str(ULTRARM), "--save_dir", str(folder), "--dtype", "float32"])
    whole, eight = HolisticModel.load(folder), HolisticModel.load(folder, eight_bit=True)
    weights = {name: weight.dtype for name, weight in eight.model.named_parameters()}
    small = {name for name, dtype in weights.items() if dtype == torch.int8}
    assert small == {name for name in weights if "_proj" in name} and len(small) == 14
    expected, found = np.array(whole.probe()), np.array(eight.probe())
    gaps = np.abs(expected - found)
    # LLM.int8 rounds to 1/127 of the largest weight of a row and of the largest input: measured 0.033 at most here
    assert 0 < gaps.max() < 0.1 * expected.std()
    assert eight.probe() == found.tolist()


def flags(**parts) -> argparse.Namespace:
    given = {"holistic_model": "a/b", "holistic_server": None, "holistic_check": False, "holistic_8bit": True}
    return argparse.Namespace(**given | {"holistic_shard": False} | parts)


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"holistic_server": "http://localhost:1"}, "--holistic_server"),
        ({"holistic_shard": True}, "--holistic_shard"),
        ({"holistic_model": None}, "add it or drop"),
    ],
)
def test_what_has_no_8_bits_is_refused(parts, words):
    with pytest.raises(UserError, match=f"--holistic_8bit.*{words}"):
        check_holistic(flags(**parts))


def test_without_the_package_it_is_one_line():
    if importlib.util.find_spec("bitsandbytes") is None:
        with pytest.raises(UserError, match="pip install bitsandbytes"):
            check_holistic(flags())
    else:
        check_holistic(flags())
