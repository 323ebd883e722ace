"""Control: the holistic reward is the true quality itself."""

import sys
from dataclasses import replace
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2]))
from miniature.mt.task import TASK as REAL
from miniature.mt.task_simulated import simulated

TASK = replace(REAL, name="miniature_mt_exact", holistic=simulated(0.0))
