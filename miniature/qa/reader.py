"""`--task miniature/qa/reader.py` of train_sft: see miniature/reader.py.

The passages are learnt too: a model that can copy names from them learns faster to compare (TUNING.md).
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2]))
from miniature.qa.task import TASK as WORLD
from miniature.reader import as_read_from

TASK = as_read_from(WORLD, " context: ", max_input_len=32, max_generated_len=128)
