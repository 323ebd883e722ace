"""A new aspect for long-form QA, in one file: an answer should not repeat its sentences.

    python -m alarm.train_ppo --task examples/coherence.py --w_coherence 1 ... <all flags of long-form-QA/train_ppo.py>

The paper's aspects, data, flags and defaults stay as they are. A weight is 0 unless it is given.
"""

import re
from dataclasses import replace

from alarm import Aspect, Metric
from alarm.tasks.qa.spec import TASK as QA

SENTENCE = re.compile(r"[^.!?]+[.!?]*")


def coherence(prompts, answers, rows):
    """-1 for each sentence that was there before, as a span: paid on its last token."""
    scores = []
    for answer in answers:
        seen, spans = set(), []
        for match in SENTENCE.finditer(answer):
            sentence = " ".join(match.group().lower().split())
            if sentence in seen:
                spans.append((match.start(), match.end(), -1.0))
            seen.add(sentence)
        scores.append(spans)
    return scores


REPEATED = Metric("repeated_sentences", lower_wins=True)
TASK = replace(QA, aspects=[*QA.aspects, Aspect("coherence", coherence, metrics=[REPEATED])])
