"""The control of the published misalignment: what a response is paid on its own tokens."""

from __future__ import annotations

import torch

from miniature.misaligned import right_align


def test_rewards_of_a_short_response_land_late_or_are_lost():
    """Rows of 4 columns: the reward of the last of 3 tokens lands on the padding, that of the first on the second."""
    long, short = torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([1.0, 2.0, 3.0])
    assert [row.tolist() for row in right_align([long, short], 4)] == [[1, 2, 3, 4], [0, 1, 2]]


def test_all_is_lost_of_less_than_half_a_row():
    assert right_align([torch.tensor([5.0])], 4)[0].tolist() == [0]
