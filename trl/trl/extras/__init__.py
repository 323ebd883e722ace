"""What can be done with a policy and a reward without training."""

from .best_of_n_sampler import BestOfNSampler

__all__ = ["BestOfNSampler"]
