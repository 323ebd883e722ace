"""Preferences of the oracle: which pairs are turned round."""

from __future__ import annotations

import random

from miniature.pairs import flipped, longer_chosen

PAIRS = [{"prompt": "p", "chosen": "a b", "rejected": "c", "margin": 0.5} for _ in range(2000)]


def test_flips_turn_their_share_round():
    assert flipped(PAIRS, 0.0, random.Random(0)) == PAIRS
    turned = sum(pair["chosen"] == "c" for pair in flipped(PAIRS, 0.25, random.Random(0)))
    assert 420 < turned < 580


def test_longer_chosen_leaves_out_equal_lengths():
    pairs = [
        {"chosen": "a b", "rejected": "c"},
        {"chosen": "a", "rejected": "c d"},
        {"chosen": "a b c", "rejected": "c d"},
        {"chosen": "a", "rejected": "c"},
    ]
    assert longer_chosen(pairs) == 2 / 3
