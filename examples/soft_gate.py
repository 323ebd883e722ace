"""Another way to combine, in one file: a gate that opens gradually.

    python -m alarm.train_ppo --task examples/soft_gate.py --reward_type soft_gate ... <the flags of the task>

The hierarchy's gate is 0 or 1. This one is sigmoid((h - threshold) / 0.25): a response just below the threshold gets a
part of its aspect rewards.
"""

from dataclasses import replace

from headlines import TASK as HEADLINES


def soft_gate(h, gate, recipe):
    """-> the share of the aspects and the share of the holistic reward that each response is paid, (B,) each."""
    return ((h - recipe.threshold) / 0.25).sigmoid(), gate.new_ones(gate.shape)


TASK = replace(HEADLINES, combiners={"soft_gate": soft_gate})
