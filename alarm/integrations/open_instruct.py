"""open-instruct: import a file with `AlarmVerifier = reward.open_instruct()`; rows with the data set "alarm" use it.

Lost: the tokens, and each part but the sum. open-instruct multiplies the reward by `--verification_reward` (10). It
scores one answer a call, so that nothing can compare the answers to one prompt.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .host import Host

if TYPE_CHECKING:
    from ..hierarchical import HierarchicalReward


def verifier(reward: HierarchicalReward, name: str, weight: float = 1.0, **settings) -> type:
    """A class of verifiers. open-instruct makes one of every class that it can find, under its name.

    The row is {"label": label}, or the label if it is a dict. The prompt is `query`.
    """
    from open_instruct.ground_truth_utils import VerificationResult, VerifierFunction

    host = Host(reward, "open-instruct", alone=True, **settings)

    class AlarmVerifier(VerifierFunction):
        def __init__(self, verifier_config=None):
            super().__init__(name, weight=weight, verifier_config=verifier_config)

        def __call__(self, tokenized_prediction, prediction, label, query=None, rollout_state=None):
            row = label if isinstance(label, dict) else {"label": label}
            parts = host.score([query or ""], [prediction], [row], [len(tokenized_prediction)])
            said = ", ".join(f"{part} {values[0]:.3f}" for part, values in host.columns(parts).items())
            return VerificationResult(score=host.totals(parts)[0], reasoning=said)

    return AlarmVerifier
