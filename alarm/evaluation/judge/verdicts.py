"""Which of two outputs a judge's reply prefers.

A reply counts if every sentence of it is understood: a verdict in one of the forms below, or a plain reason beside one.
All else has no verdict: a failure is counted, but a reply that is read as its opposite would show nowhere.
"""

from __future__ import annotations

import json
import re
import unicodedata

_NOUN = r"(?:output|answer|response|option|candidate|choice|assistant|model|text|version|translation|summary)"
# a single letter behind a noun, or in brackets; a bare "a" can be the article
_NAME = re.compile(
    rf"[(\[]?\b(?:the )?\b{_NOUN}(?:[\s:#-]+|(?=[(\[{{]))[(\[{{]?\s*([a-z])\b\s*[)\]}}]*"
    r"|(?<!\w)[(\[{]\s*([a-z])\s*[)\]}]+"
)

_WIN, _LOSE = r"@?(?P<win>[ab])[)\].]?", r"@?(?P<lose>[ab])[)\].]?"
_GOOD = r"(?:better|best|superior|preferable|preferred|stronger|winner|winning)"
_BAD = r"(?:worse|worst|inferior|weaker|poorer|loser|losing)"
_DEGREE = r"(?:(?:the|a|clearly|much|far|slightly|somewhat|marginally|significantly|definitely|by) )*"
_ONE = rf"(?: (?:one|{_NOUN}|of the two|overall))*"
_LEAD = r"(?:(?:so|thus|therefore|hence|overall|in conclusion|in summary|verdict|final verdict|conclusion)[,:]? )?"
_IS = r"(?: (?:is|was))? "
_THAN = r"(?: (?:than|to|over|compared to|compared with) )"
_WHAT = r"(?:(?:my|the|your) )?(?:final )?(?:verdict|answer|choice|decision|preference|pick|winner|result)"
_VERDICTS = [
    re.compile(_LEAD + form)
    for form in (
        rf"(?:final )?{_WIN}",
        rf"{_WHAT}(?: is|:)? ?:? ?{_WIN}",
        rf"(?:the )?{_GOOD}{_ONE}(?: is| was)? ?:? ?{_WIN}",
        rf"(?:the )?{_BAD}{_ONE}(?: is| was)? ?:? ?{_LOSE}",
        rf"(?:the )?{_NOUN} that serves the input better is {_WIN}",
        rf"i (?:prefer|choose|pick|select){_ONE} {_WIN}(?:{_THAN}{_LOSE})?",
        rf"{_WIN}{_IS}{_DEGREE}{_GOOD}{_ONE}(?:{_THAN}{_LOSE})?{_ONE}",
        rf"{_LOSE}{_IS}{_DEGREE}{_BAD}{_ONE}(?:{_THAN}{_WIN})?{_ONE}",
        rf"{_WIN} (?:wins|serves the input better)(?:{_THAN}{_LOSE})?",
        rf"{_WIN} (?:beats|outperforms) {_LOSE}",
    )
]
_REASON = re.compile(r",? (?:because|since|due to)\b")
_REASON_STARTS = re.compile(r"(?:it|its|this|that|the|because|since|@[ab])\b")
# a bare "a" in a sentence is the article, unless nothing can follow it
_MENTION = re.compile(r"@([a-z])\b|(?<![\w'])([b-hj-z])\b|\ba(?=$|[,:'])")
# a sentence with one of these may take a verdict back
_DOUBT = re.compile(
    r"\?|n't\b|\b(?:no|not|never|nor|none|neither|cannot|without|hardly|barely|worse|worst|inferior|weaker|poorer|bad|poor|"
    r"wrong\w*|incorrect\w*|inaccurate|fail\w*|lack\w*|miss\w*|error\w*|mistak\w*|flaw\w*|wait|actually|however|but|yet|"
    r"though|although|despite|while|whereas|except|unless|if|instead|rather|otherwise|other|another|opposite|revers\w*|"
    r"latter|former|first|second|both|equal\w*|same|tie|tied|ties|draw|similar\w*|comparable|close|either|maybe|perhaps|"
    r"possibly|probably|likely|unsure|uncertain|unclear|would|could|might|may|should|seem\w*|hard|difficult|sorry|correct\w*ion|"
    r"reconsider\w*|revis\w*|chang\w*|withdraw\w*|retract\w*|reflection|ignore|disregard|doubt\w*|joke|joking|"
    r"kidding|hmm+|oops|less|least|false|untrue)\b"
)
_JSON_KEYS = frozenset(
    "answer best better better_output choice decision output preferred preference selected verdict winner".split()
)


def read_verdict(reply: str) -> str | None:
    """Which output a reply prefers: "a", "b", or None if that is not certain.

    Understood are a name alone ("Output (a)", "**B**", "(b)", "Answer: A"), statements of which output is better or
    worse ("B is better than (a)", "the worse one is Output (b)"), and one JSON value under a key such as "better".
    Reasons may stand beside them if they name no other output and hold no word of doubt. What a model thinks in <think>
    tags is left out. Questions, negations, ties, other languages, quotations and contradictions have no verdict.
    """
    text = unicodedata.normalize("NFKC", reply).rpartition("</think>")[2]
    if "<think" in text:
        return None
    text = re.sub(r"^\s*```(?:json|text)?\s*\n(.*)\n\s*```\s*$", r"\1", text, flags=re.DOTALL)
    if text.lstrip().startswith("{"):
        text = _json_value(text)
    sentences = _sentences(text)
    verdicts = [_verdict(sentence) for sentence in sentences]
    found = {verdict for verdict in verdicts if verdict}
    if len(found) != 1:
        return None
    preferred = found.pop()
    reasons = [sentence for sentence, verdict in zip(sentences, verdicts, strict=True) if not verdict]
    reasons += [sentence[match.end() :] for sentence in sentences if (match := _REASON.search(sentence))]
    return preferred if all(_is_harmless(sentence, preferred) for sentence in reasons) else None


def _json_value(text: str) -> str:
    """The one value of a JSON object, as "answer: value"; "" for another object."""
    try:
        [(key, value)] = json.loads(text, object_pairs_hook=list)  # pairs: a key twice is no single value
    except (ValueError, RecursionError):
        return ""
    return f"answer: {value}" if key.lower() in _JSON_KEYS and isinstance(value, str) else ""


def _sentences(text: str) -> list[str]:
    """Lower-case sentences without markup, outputs named "@a"."""
    text = re.sub(r"[‘’]", "'", text.lower())
    text = re.sub(r"[*_`\"“”]|(?<!\w)'|'(?!\w)|^[ \t]*#+ ", " ", text, flags=re.MULTILINE)
    lines = [" ".join(line.split()) for line in text.split("\n")]
    named = [_NAME.sub(lambda match: f" @{match[1] or match[2]} ", line) for line in lines]
    parts = [part for line in named for part in re.split(r"(?<=[.!;])\s+", " ".join(line.split()))]
    return [part for part in (re.sub(r"\s*[.!,;]+$", "", part).strip() for part in parts) if part]


def _verdict(sentence: str) -> str | None:
    """The output that a whole sentence, up to its reason, calls the better one."""
    sentence = _REASON.split(sentence, maxsplit=1)[0]
    for form in _VERDICTS:
        if match := form.fullmatch(sentence):
            groups = match.groupdict()
            win, lose = groups.get("win"), groups.get("lose")
            if win == lose:
                return None
            return win or ("b" if lose == "a" else "a")
    return None


def _is_harmless(reason: str, preferred: str) -> bool:
    """Whether a sentence without a verdict, or what follows "because", cannot take the verdict back."""
    others = {match[1] or match[2] or "a" for match in _MENTION.finditer(reason)} - {preferred}
    english = _REASON_STARTS.match(reason.strip()) is not None
    return english and not others and not _DOUBT.search(reason)
