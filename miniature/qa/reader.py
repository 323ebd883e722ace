"""`--task miniature/qa/reader.py` of train_sft: see miniature/reader.py."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2]))
from miniature.qa.task import TASK as WORLD
from miniature.reader import as_read

TASK = as_read(WORLD, max_input_len=160)
