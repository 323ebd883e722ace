"""Control: train_ppo.py with rewards on the tokens where the published code put them. `python -m miniature.misaligned`

The published PPO pushed each reward vector to the right end of the padded row: in a batch whose longest response has M
tokens, the rewards of a response of T tokens land M - T tokens late, and the last M - T of them are lost.
"""

from __future__ import annotations

import runpy

import trl
from alarm import train_ppo

from .stages import ROOT

# by its path: installed packages bring a package `benchmarks` of their own
right_align = runpy.run_path(str(ROOT / "benchmarks" / "token_alignment.py"))["right_align"]


class MisalignedTrainer(trl.PPOTrainer):
    def step(self, queries, responses, scores, *args, **kwargs):
        return super().step(queries, responses, right_align(scores, max(map(len, scores))), *args, **kwargs)


if __name__ == "__main__":
    trl.PPOTrainer = MisalignedTrainer  # alarm takes the class from the package when it makes the trainer
    train_ppo.main()
