"""ALaRM: align language models with a holistic reward and aspect rewards, combined hierarchically.

Importing this package loads nothing heavy; torch and the models come in with the module that needs them.
"""

from .api import Aspect, Flag, Metric, Task
from .hierarchical import HierarchicalReward

__all__ = ["Aspect", "Flag", "HierarchicalReward", "Metric", "Task"]
__version__ = "0.1.0"
