"""What a judge's reply means: the verdict meant, or none, and never the opposite."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alarm.evaluation.judge.verdicts import read_verdict

REPLIES = [
    # the name alone, as asked
    ("Output (a)", "a"),
    ("output (B).", "b"),
    ("OUTPUT (A)!", "a"),
    ("  Output ( b )  \n", "b"),
    ("**Output (a)**", "a"),
    ("__Output__ **(b)**", "b"),
    ("`Output (b)`", "b"),
    ("\"Output (a)\"", "a"),
    ("“Output (b)”", "b"),
    ("Output a", "a"),
    ("Output: [b]", "b"),
    ("output B", "b"),
    ("a", "a"),
    ("B.", "b"),
    ("b)", "b"),
    ("[A]", "a"),
    ("(Output a)", "a"),
    ("Output（b）", "b"),  # full width
    ("Answer: A", "a"),
    ("Answer: Output (b)", "b"),
    ("Option B", "b"),
    ("## Output (b)", "b"),
    ("```\nOutput (b)\n```", "b"),
    # statements of the better one
    ("Output (a) is better.", "a"),
    ("Output (b) is the better output.", "b"),
    ("Output (a) is better than Output (b).", "a"),
    ("Output (a) is better than Output b", "a"),
    ("Output (a) is better than b", "a"),
    ("Output b is better than (a)", "b"),
    ("B is better than A", "b"),
    ("a is clearly better than b.", "a"),
    ("Output A is a much better response than output B", "a"),
    ("(b) is superior to (a)", "b"),
    ("(a) wins.", "a"),
    ("(b) beats (a)", "b"),
    ("Overall, Output (b) is better.", "b"),
    ("I prefer Output (a) over Output (b).", "a"),
    ("I choose b", "b"),
    ("The better output is (b).", "b"),
    ("The better one is output(b)", "b"),
    ("My final answer is Output (a).", "a"),
    ("**Final verdict:** Output (b)", "b"),
    ("Winner: (a)", "a"),
    # the worse one
    ("B is worse than (a)", "a"),
    ("Output (a) is worse than Output b", "b"),
    ("Output (a) is worse.", "b"),
    ("Output b is the worse one.", "a"),
    ("The worse output is Output (b).", "a"),
    ("Output (b) is clearly inferior to Output (a)", "a"),
    # reasons
    ("Output (a)\n\nOutput (a) is more complete.", "a"),
    ("Output (b)\n\nIt's more complete and answers what was asked.", "b"),
    ("It is correct and clear. Output (a)", "a"),
    ("Output (a) is better because it answers the question directly.", "a"),
    ("Output (b) is better, since it is more complete.", "b"),
    ("The better output is (a) because it names the year.", "a"),
    # thinking
    ("<think>Output (a) is better? No, (b).</think>\nOutput (b)", "b"),
    ("Is it (a)? It is.</think>Output (a)", "a"),
    ("<think>Output (a) is better. It", None),
    ("Output (a)\n<think>", None),
    # JSON
    ('{"better": "a"}', "a"),
    ('```json\n{"verdict": "Output (b)"}\n```', "b"),
    ('{"answer": "(a)"}', "a"),
    ('{"worse": "a"}', None),
    ('{"a": 1, "b": 2}', None),
    ('{"better": null}', None),
    ('{"better": "a", "better": "b"}', None),
    ('{"better": {"output": "a"}}', None),
    ('{"better": "a", "worse": "a"}', None),
    ('{"better": "a', None),
    # negations
    ("(a) is not better than (b)", None),
    ("Output (a) isn't better.", None),
    ("Output (b) is no better than Output (a).", None),
    ("Not Output (a).", None),
    ("The better output is not (a).", None),
    ("I would not choose (a).", None),
    ("Output (a) is hardly better.", None),
    ("Output (a) is better, but not by much.", None),
    ("It is not true that Output (a) is better.", None),
    # questions, doubt, changes of mind
    ("Is Output (a) better?", None),
    ("Output (a)?", None),
    ("Maybe Output (a)", None),
    ("Output (a) might be better.", None),
    ("Output (a) is better if length matters.", None),
    ("Output (a)\n\nWait, that is wrong.", None),
    ("Output (a). Actually, the other one is better.", None),
    ("Output (a)\nOn reflection the second one.", None),
    ("Output (a) is better because Output (b) is wrong.", None),
    ("Output (b)\nIt is as good as A", None),
    ("Output (a). Output b is more complete.", None),
    # neither, both, ties, others
    ("Neither is better.", None),
    ("Neither Output (a) nor Output (b)", None),
    ("Both Output (a) and Output (b) are good.", None),
    ("It's a tie.", None),
    ("Output (a) and (b) are equally good.", None),
    ("Output (a) is as good as Output (b).", None),
    ("(a) = (b)", None),
    ("Output (a) / Output (b)", None),
    ("either (a) or (b)", None),
    ("Output (a) rather than Output (b)", None),
    ("Output (a), not (c)", None),
    ("Output (a) is better than Output (a)", None),
    ("Output (c)", None),
    ("The first one.", None),
    ("", None),
    ("ab", None),
    # the texts themselves, or no verdict at all
    ("Output (a):\nParis is the capital.", None),
    ("Output (a):\nParis.\n\nOutput (b):\nLondon.", None),
    ("> Output (a)\nThe input asks for a capital.", None),
    ("I would output a better answer", None),
    ("A better answer would name the year.", None),
    ("Answer(s): f(a)", None),
    ("Output (a) is more verbose.", None),
    ("Output (a) is wrong about the year.", None),
    ("I'm sorry, I can't compare these.", None),
    # other languages
    ("Output (b) ist besser.", None),
    ("La mejor es la salida (a).", None),
    ("Output (a) n'est pas meilleur.", None),
    ("输出 (a) 更差", None),
    ("Output (a)\nEs ist schlechter.", None),
]  # fmt: skip


@pytest.mark.parametrize(("reply", "meant"), REPLIES)
def test_a_reply_means_what_it_says(reply, meant):
    assert read_verdict(reply) == meant


def test_replies_that_the_first_parser_turned_round():
    """It looked at names in parentheses alone."""
    replies = ["Output b is better than Output (a)", "B is better than (a)", "Output (a) is worse", "(a) is not better"]
    assert [read_verdict(reply) for reply in replies] == ["b", "b", "b", None]


# --- properties ------------------------------------------------------------------------------------------------------

STYLES = ["Output ({})", "output {}", "({})", "{}", "**Output ({})**", "[{}]", "Option {}", "`({})`", "the output ({})"]
FORMS = [
    "{x}", "{x}.", "Answer: {x}", "The better one is {x}", "{x} is better", "{x} is better than {y}.", "{x} is worse",
    "{x} is worse than {y}", "The worse output is {x}.", "I prefer {x} to {y}", "{x} is not better than {y}",
    "{x} rather than {y}", "{x} and {y} are equal", "Is {x} better than {y}?", "{x} is better because it is complete",
    "{x}\n\nIt is more complete.", "{x} beats {y}", "{x} is no worse than {y}", "{x} is wrong", "{x} wins", "not {x}",
    "{x}\n{y}", "{x} is better. {y} is worse.", "{x} is better. {y} is better.", "{x} or {y}", "{x} loses to {y}",
]  # fmt: skip
MEANT = {"{x} is worse": -1, "{x} is worse than {y}": -1, "The worse output is {x}.": -1}
HEDGES = [
    "Maybe {}", "{}?", "I am not sure. {}", "{} But the other one is shorter.", "{}\nWait, no.", "It seems that {}",
    "Possibly: {}", "{} Hmm.", "If length matters: {}", "{}, or both", "{} That said, I could be wrong.", "Not {}",
    "It is not the case that {}", "{}\n\nCorrection: the reverse.", "{} - or rather the opposite", "Nobody says {}",
]  # fmt: skip
names = st.tuples(st.sampled_from(STYLES), st.sampled_from(STYLES), st.booleans())


def fill(form: str, styles: tuple, first: str, second: str) -> str:
    upper = str.upper if styles[2] else str
    return form.format(x=styles[0].format(upper(first)), y=styles[1].format(upper(second)))


@given(st.sampled_from(FORMS), names)
@settings(max_examples=400, deadline=None)
def test_swapping_the_names_swaps_the_verdict(form, styles):
    verdict, swapped = read_verdict(fill(form, styles, "a", "b")), read_verdict(fill(form, styles, "b", "a"))
    assert swapped == {"a": "b", "b": "a", None: None}[verdict]
    # and never is the verdict the opposite of what the form says
    assert verdict in (None, "b" if form in MEANT else "a")


@given(st.sampled_from(FORMS), names, st.sampled_from(HEDGES), st.booleans())
@settings(max_examples=600, deadline=None)
def test_a_hedge_never_turns_a_verdict(form, styles, hedge, swap):
    reply = fill(form, styles, *("ba" if swap else "ab"))
    hedged = read_verdict(hedge.format(reply))
    assert hedged is None or hedged == read_verdict(reply)


@given(st.text(alphabet="abAB()[]. \nOutput:*isbetrwon?'@", max_size=40))
@settings(max_examples=300, deadline=None)
def test_any_text_has_a_verdict_or_none(text):
    assert read_verdict(text) in ("a", "b", None)
