"""How good the best-ranked of n answers is: the estimator, its intervals, and the KL of best-of-n.

S settings rank B answers to P prompts. The answers to a prompt stand one after the other.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import numpy as np

from ...common.bootstrap import Resamples, intervals, resampled_means

COLUMNS = 500  # whose draws are held at a time
TIE = 1e-9  # rewards whose difference is below this share of the prompt's largest are equal: sums round


def best_weights(size: int, most: int) -> np.ndarray:
    """How likely the answer of each rank is the best of n drawn without replacement from `size`. -> (size, most).

    P(rank j is the best of n) = C(j - 1, n - 1) / C(size, n), ranks from 1, the lowest reward, for n = 1..most.
    """
    drawn = range(1, most + 1)
    return np.array([[math.comb(j, n - 1) / math.comb(size, n) for n in drawn] for j in range(size)])


@dataclass(frozen=True)
class Block:
    """The order in which S settings put the m answers to each of P' prompts. Equal rewards share a level."""

    prompts: np.ndarray  # (P',) numbers of the prompts
    rows: np.ndarray  # (P', m) numbers of their answers
    order: np.ndarray  # (S, P', m): places of the answers, from the lowest reward
    level: np.ndarray  # (S, P', m), of the answers in this order: whole numbers that rise, each in one prompt alone


class Ranking:
    """How S settings rank the answers to each of P prompts.

    rewards: (S, B) finite. sizes: (P,) numbers of answers.
    """

    def __init__(self, rewards: np.ndarray, sizes: np.ndarray):
        self.blocks = []
        self.shape = (len(rewards), len(sizes))
        starts = np.cumsum(sizes) - sizes
        for size in np.unique(sizes):
            prompts = np.flatnonzero(sizes == size)
            rows = starts[prompts][:, None] + np.arange(size)
            self.blocks.append(Block(prompts, rows, *_rank(rewards[:, rows])))

    def expected_best(self, quality: np.ndarray, most: int) -> np.ndarray:
        """The expected quality of the best-ranked of n answers to each prompt, n = 1..most. (B,) -> (S, P, most).

        quality finite; no prompt with fewer than `most` answers. Unbiased: it is the mean over all draws of n of a
        prompt's m answers, without replacement. With ranks j = 1..m from the lowest reward

            E_n = sum_j C(j - 1, n - 1) / C(m, n) q_j

        and q_j the mean quality of the answers whose reward ties with that of rank j: of answers that tie for the best,
        one is taken at random.
        """
        found = np.empty((*self.shape, most))
        for block in self.blocks:
            ranked = quality[block.rows[np.arange(len(block.rows))[:, None], block.order]]
            level = block.level.reshape(-1)
            mean = np.bincount(level, ranked.reshape(-1)) / np.bincount(level)
            found[:, block.prompts] = mean[level].reshape(ranked.shape) @ best_weights(ranked.shape[-1], most)
        return found

    def keys(self) -> list[bytes]:
        """S keys, equal for settings that rank the answers to every prompt alike."""
        parts = []
        for block in self.blocks:
            of_answers = np.empty(block.order.shape, dtype=np.int32)
            np.put_along_axis(of_answers, block.order, (block.level - block.level[..., :1]).astype(np.int32), axis=-1)
            parts.append(of_answers)
        return [hashlib.sha256(b"".join(part[s].tobytes() for part in parts)).digest() for s in range(self.shape[0])]


def _rank(rewards: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(S, P', m) rewards -> order and level of a Block."""
    order = np.argsort(rewards, axis=-1, kind="stable")
    ranked = np.take_along_axis(rewards, order, axis=-1)
    scale = np.abs(ranked[..., [0, -1]]).max(axis=-1, keepdims=True)
    new = np.ones(rewards.shape, dtype=bool)
    new[..., 1:] = np.diff(ranked, axis=-1) > TIE * scale
    return order, (np.cumsum(new) - 1).reshape(rewards.shape)


def kl_of_best(n: np.ndarray) -> np.ndarray:
    """KL from the policy to its best of n, in nats, log n - (n - 1) / n: an upper bound, reached if no two answers tie.

    Stiennon et al. 2020 (arXiv 2009.01325), Beirami et al. 2024 (arXiv 2401.01879).
    """
    return np.log(n) - (n - 1) / n


def mean_with_interval(values: np.ndarray, resamples: Resamples) -> tuple[np.ndarray, np.ndarray]:
    """Means over prompts, and the 95% intervals of `resamples`. (P, C) -> (C,), (C, 2)."""
    columns = range(0, values.shape[1], COLUMNS)
    bounds = [intervals(resampled_means(values[:, start : start + COLUMNS], resamples)) for start in columns]
    return values.mean(axis=0), np.concatenate(bounds)
