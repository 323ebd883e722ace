"""The hierarchical reward inside other people's trainers: one thin module a trainer, no trainer imported before use.

docs/trainers/ has a page for each: the command, what is lost, and the version that it was tested with.
"""

from __future__ import annotations


class Exits:
    """The trainers that a HierarchicalReward can be used in. Each method gives what the trainer takes.

    Each takes diagnostics=True, which prints a warning when rewards go wrong (alarm.diagnostics), and max_length, the
    most tokens that a response can have, so that answers of the full length are noticed.
    """

    def trl(self, **settings):
        """A reward function of Hugging Face's TRL (GRPO, RLOO). See integrations.trl."""
        from .trl import TRLReward

        return TRLReward(self, **settings)

    def verl(self, prompt: str, **settings):
        """`compute_score` of verl. prompt: the key of extra_info that holds it. See integrations.verl."""
        from .verl import score_function

        return score_function(self, prompt, **settings)

    def verl_manager(self, **settings):
        """A reward manager of verl, with token rewards if asked for. See integrations.verl."""
        from .verl import manager

        return manager(self, **settings)

    def openrlhf(self, tokenizer, **settings):
        """`reward_func` of OpenRLHF. tokenizer: the policy's, or its name. See integrations.openrlhf."""
        from .openrlhf import OpenRLHFReward

        return OpenRLHFReward(self, tokenizer, **settings)

    def serve_openrlhf(self, tokenizer, port: int = 5000, host: str = "127.0.0.1", **settings) -> None:
        """Serve OpenRLHF's --reward.remote_url until ^C. See integrations.openrlhf."""
        from .openrlhf import OpenRLHFReward, serve

        serve(OpenRLHFReward(self, tokenizer, **settings), port, host)

    def nemo_rl(self, **settings):
        """Rewards by component, for an environment of NeMo-RL. See integrations.nemo_rl."""
        from .nemo_rl import NeMoReward

        return NeMoReward(self, **settings)

    def open_instruct(self, name: str = "alarm", **settings):
        """A class of verifiers of open-instruct. See integrations.open_instruct."""
        from .open_instruct import verifier

        return verifier(self, name, **settings)

    def verifiers(self, **settings) -> dict[str, list]:
        """`funcs` and `weights` of a Rubric of verifiers. See integrations.verifiers."""
        from .verifiers import rubric

        return rubric(self, **settings)

    def skyrl(self, generator, tokenizer, **settings):
        """A generator of SkyRL around another one, with token rewards. See integrations.skyrl."""
        from .skyrl import TokenRewards

        return TokenRewards(self, generator, tokenizer, **settings)

    def ms_swift(self, **settings):
        """A class of ORMs of ms-swift. See integrations.ms_swift."""
        from .ms_swift import orm

        return orm(self, **settings)
