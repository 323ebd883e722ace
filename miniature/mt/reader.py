"""The demonstrations as a preference model reads them: `--task miniature/mt/reader.py` of train_sft.

A preference model that starts from a language model of this text orders answers better (TUNING.md).
"""

import sys
from dataclasses import replace
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2]))
from alarm.models.holistic import PROMPT_PART
from miniature.mt.task import TASK as WORLD

TASK = replace(
    WORLD,
    name="miniature_mt_reader",
    prompt=lambda row: PROMPT_PART.format(prompt=row["text"]) + "\nAssistant:",
    max_input_len=48,
)
