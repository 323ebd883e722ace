"""ALaRM: align language models with a holistic reward and aspect rewards, combined hierarchically.

Importing this package loads nothing heavy; torch and the models come in with the module that needs them.
"""

from typing import TYPE_CHECKING

from .api import Aspect, Flag, Metric, Task

if TYPE_CHECKING:
    from .hierarchical import HierarchicalReward

__all__ = ["Aspect", "Flag", "HierarchicalReward", "Metric", "Task"]
__version__ = "0.1.0"


def __getattr__(name: str):
    if name != "HierarchicalReward":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .hierarchical import HierarchicalReward

    globals()[name] = HierarchicalReward
    return HierarchicalReward
