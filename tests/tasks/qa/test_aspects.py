"""Long-form QA: data, reward models, the three aspects."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import spacy
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from alarm.common.errors import UserError
from alarm.models.classifiers import UnitClassifier
from alarm.rewards import aspect_rewards
from alarm.scoring import place
from alarm.tasks.qa.aspects import judge_units, rate, sentences, subsentences
from alarm.tasks.qa.data import load_examples
from alarm.tasks.qa.spec import FACTUALITY, RELEVANCE, TASK
from alarm.tasks.sentences import Splitter
from alarm.tasks.spans import token_offsets
from alarm.training.main import parse_args
from alarm.types import AspectScore, Rollout
from helpers import CHECKPOINTS, GOLDEN, ROOT, Aspects

ASPECTS = tuple(aspect.name for aspect in TASK.aspects)
PUBLISHED = {"relevance": "verbosity", "factuality": "factuality", "completeness": "completeness"}


def reward_models(folder: Path, checkpoints: Path = CHECKPOINTS) -> Path:
    for name in ("rel_rm", "fact_rm", "comp_rm"):
        shutil.copytree(checkpoints / f"tiny-{name}", folder / name, copy_function=shutil.copyfile)
        (folder / name).chmod(0o755)
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    return reward_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def t5():
    return AutoTokenizer.from_pretrained(CHECKPOINTS / "small-t5-tokenizer")


def qa_aspects(models: Path, tokenizer, names=ASPECTS) -> Aspects:
    return Aspects(TASK, tokenizer, names, reward_model_dir=models, splitter="sentencizer")


def check_reward_models(folder: Path, names=ASPECTS) -> None:
    args = parse_args(TASK, "", ["--save_dir", "x", "--reward_model_dir", str(folder), "--splitter", "sentencizer"])
    for name in names:
        TASK.aspect(name).check(args)


@pytest.fixture(scope="module")
def aspects(models, t5) -> Aspects:
    return qa_aspects(models, t5)


def rollout(tokenizer, answers: list[str], prompts: list[str] | None = None) -> Rollout:
    prompts = prompts or ["question: Why? context: none"] * len(answers)
    return Rollout(
        query_ids=[torch.tensor(ids) for ids in tokenizer(prompts).input_ids],
        response_ids=[torch.tensor(ids) for ids in tokenizer(answers).input_ids],
        queries=prompts,
        responses=answers,
        examples=[{"text": prompt, "question": "Why?"} for prompt in prompts],
        too_short=torch.tensor([not answer for answer in answers]),
    )


# --- agreement with the published code -------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=GOLDEN)
def golden(request, tmp_path_factory, t5):
    """Items of the published run, our reward models, and the rollout they scored."""
    data = json.loads((request.param / "finegrained_reward.json").read_text())
    items = data["items"]
    assert data["qa_settings"] == {
        flag.name.replace("relevance", "verbosity"): flag.default for aspect in TASK.aspects for flag in aspect.flags
    }
    folder = reward_models(tmp_path_factory.mktemp("golden"), request.param / "checkpoints")
    batch = Rollout(
        query_ids=[torch.zeros(1, dtype=torch.long)] * len(items),
        response_ids=[torch.tensor(item["generated_ids"]) for item in items],
        queries=[item["prompt"] for item in items],
        responses=[item["text"] for item in items],
        examples=items,
        too_short=torch.zeros(len(items), dtype=torch.bool),
    )
    return items, qa_aspects(folder, t5), batch


def test_golden_logits(golden):
    """Reward-model inputs, and the logits at the separators."""
    items, aspects, batch = golden
    answers = [token_offsets(aspects.tokenizer, ids)[0] for ids in batch.response_ids]
    for name, short, contexts, units in [
        ("relevance", "rel", [f"question: {item['question']} answer:" for item in items], subsentences),
        ("factuality", "fact", [f"{item['prompt']} answer:" for item in items], sentences),
    ]:
        loaded = aspects.scorer.aspects[name]
        spans = units(answers, loaded.splitter)
        texts = [[text[start:end] for start, end in of] for text, of in zip(answers, spans, strict=True)]
        for item, unit_texts in zip(items, texts, strict=True):
            assert " ".join(f"</s> {text}" for text in unit_texts).split() == item[f"{short}_reward_input"].split()
        worst = 0.0
        for item, logits in zip(items, loaded.model(contexts, texts), strict=True):
            published = torch.tensor(item[f"{short}_logits_at_sep"])[:-1]  # the last one is the closing token
            worst = max(worst, (logits - published).abs().max().item())
        print(f"{name}: largest difference of a logit {worst:.1e}")
        assert worst < 1e-5
    texts = [f"{' '.join(item['prompt'].split())} answer: {item['text']}" for item in items]
    raw = aspects.scorer.aspects["completeness"].model(texts)
    assert raw == pytest.approx([item["comp_logit"] for item in items], abs=1e-5)


@pytest.mark.parametrize("shaped", [False, True])
def test_golden_rewards(golden, t5, shaped):
    """Values agree to 1e-5. Positions do, except where the published code re-tokenises the text (defect 3):

    - the answer was not sampled in its canonical segmentation: published positions count other tokens;
    - a sub-sentence is tokenised with the space behind it, which makes one token of its own: the published relevance
      reward lands on the first token of the next sub-sentence. Ours lands on the last token of its own.
    """
    items, aspects, batch = golden
    scores = aspects(batch, shaped=shaped)
    assert scores["relevance"].metrics["relevance_rate"] == pytest.approx(
        [item["n_verbosity_correct"] / item["n_sub_sentences"] for item in items]
    )
    assert scores["factuality"].metrics["factuality_rate"] == pytest.approx(
        [item["n_factuality_correct"] / item["n_sentences"] for item in items]
    )
    moved = 0
    for i, item in enumerate(items):
        canonical = t5(item["text"]).input_ids == item["generated_ids"]
        for name in ASPECTS:
            ours = scores[name].rewards[i]
            published = torch.tensor(item[f"{PUBLISHED[name]}_rewards_sig{int(shaped)}"], dtype=torch.float32)
            assert ours.shape == published.shape
            assert torch.allclose(ours[ours != 0], published[published != 0], atol=1e-5)  # same units, same values
            if name == "completeness" or (name == "factuality" and canonical):
                assert torch.allclose(ours, published, atol=1e-5)
            elif canonical:
                at, published_at = ours.nonzero().flatten().tolist(), published.nonzero().flatten().tolist()
                assert published_at == [position + 1 for position in at[:-1]] + at[-1:]
            else:
                moved += not torch.equal(ours, published)
    assert moved > 0  # the set holds such answers


# --- placement and rates by hand -------------------------------------------------------------------------------------


def on_tokens(aspect, spans: list[tuple[int, int, float]], length: int) -> list[float]:
    """What an answer of one-letter tokens is paid for spans of it."""
    offsets = [(at, at + 1) for at in range(length)]
    placed = place(aspect, AspectScore([spans], {aspect.metrics[0].name: [0.0]}), [("x" * length, offsets)])
    return aspect_rewards(placed, [length], shaping="none")[0].tolist()


def test_units_are_paid_on_their_last_token_by_hand():
    found = on_tokens(FACTUALITY, [(0, 2, 0.5), (2, 4, -0.25), (3, 4, 0.5)], 5)
    assert found == [0.0, 0.5, 0.0, 0.25, 0.0]  # two units that end on one token are both paid
    assert [rate([]), rate([True, False, False, True])] == [0.5, 0.5]
    assert rate([True, True, False, True]) == 0.75


def test_units_with_logits_that_are_not_finite_are_undefined():
    nan, inf = math.nan, math.inf
    # labels F-ERR, NF-ERR, O; the error is F-ERR
    logits = torch.tensor([[0.0, 9.0, 1.0], [1.0, 0.0, 0.0], [nan, 0.0, 1.0], [0.0, 0.0, inf], [1.0, nan, 0.0]])
    found = judge_units(logits, error=0)
    assert found[:2] == [1.0, 0.0] and all(map(math.isnan, found[2:]))
    rewards = on_tokens(RELEVANCE, [(0, 2, nan), (2, 4, 0.5)], 5)
    assert math.isnan(rewards[1]) and [rewards[k] for k in (0, 2, 3, 4)] == [0, 0, 0.5, 0]
    assert math.isnan(rate([1.0, nan, 0.0]))


def spoil(model: Path) -> None:
    weights = load_file(model / "model.safetensors")
    spoilt = {k: v * math.nan if k.startswith("classifier") else v for k, v in weights.items()}
    save_file(spoilt, model / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("shaping", [False, True])
def test_reward_models_that_give_nan_give_nan_rewards_and_rates(t5, tmp_path, shaping):
    models = reward_models(tmp_path)
    for name in ("rel_rm", "fact_rm", "comp_rm"):
        spoil(models / name)
    scores = qa_aspects(models, t5)(rollout(t5, ["The sky is blue. It is high."]), shaped=shaping)
    assert set(scores) == set(ASPECTS)
    for name, score in scores.items():
        assert torch.isnan(score.rewards[0].sum()), name
        assert [math.isnan(value) for values in score.metrics.values() for value in values] == [True]


def test_rewards_sit_on_the_tokens_that_end_units(aspects, t5):
    text = "The river is long. Is it the longest of all, or is there one that is longer still? Yes."
    batch = rollout(t5, [text])
    scores = aspects(batch)
    _, offsets = token_offsets(t5, batch.response_ids[0])
    ends = {name: [offsets[k][1] for k in scores[name].rewards[0].nonzero()] for name in ASPECTS[:2]}
    assert [text[:end].split()[-1] for end in ends["factuality"]] == ["long.", "still?", "Yes."]
    assert [text[:end].split()[-1] for end in ends["relevance"]] == ["long.", "all,", "still?", "Yes."]
    assert scores["completeness"].rewards[0].nonzero().flatten().tolist() == [len(offsets) - 1]  # on EOS


def test_a_batch_is_scored_as_its_members_alone(aspects, t5):
    answers = ["Yes.", "The river is long, they say, and so is the road. " * 6, "It is not known. Nobody asked."]
    together = aspects(rollout(t5, answers))
    for i, answer in enumerate(answers):
        alone = aspects(rollout(t5, [answer]))
        for name in ASPECTS:
            assert torch.allclose(together[name].rewards[i], alone[name].rewards[0], atol=1e-5)
            for metric, values in together[name].metrics.items():
                assert values[i] == pytest.approx(alone[name].metrics[metric][0], abs=1e-5)


def test_empty_answers(aspects, t5):
    batch = rollout(t5, ["", "Yes.", ""])
    batch.response_ids[2] = torch.zeros(0, dtype=torch.long)
    scores = aspects(batch)
    for name in ("relevance", "factuality"):
        assert scores[name].rewards[0].tolist() == [0.0]
        assert scores[name].metrics[f"{name}_rate"][0] == 0.5
        assert scores[name].rewards[2].shape == (0,)
    assert scores["completeness"].rewards[2].shape == (0,)
    everything_empty = aspects(rollout(t5, [""]))
    assert everything_empty["factuality"].metrics == {"factuality_rate": [0.5]}


def test_names_limit_what_is_computed(aspects, t5, monkeypatch):
    batch = rollout(t5, ["Yes. It is."])
    assert aspects(batch, ()) == {}
    monkeypatch.setattr(Splitter, "__call__", lambda self, texts: pytest.fail("parsed for nothing"))
    assert list(aspects(batch, ["completeness"])) == ["completeness"]
    with pytest.raises(UserError, match=r"coherence.*relevance, factuality, completeness"):
        aspects(batch, ["coherence"])


def test_each_text_is_parsed_once(aspects, t5, monkeypatch):
    """Defect 4 of the published code: relevance and factuality each parse it."""
    seen = []

    def pipe(nlp, texts, **kwargs):
        seen.append(list(texts))
        return original(nlp, seen[-1], **kwargs)

    original = spacy.Language.pipe
    monkeypatch.setattr(spacy.Language, "pipe", pipe)
    aspects(rollout(t5, ["Yes, they do. It is.", "No."]))
    assert seen == [["Yes, they do. It is.", "No."]]


def test_units_beyond_the_models_limit_are_left_out(aspects, t5):
    """The prompt takes all positions but a few: the last sentences' separators fall off."""
    loaded = aspects.scorer.aspects["factuality"]
    limit = loaded.model.max_length
    sentence = "It is so."
    words = (limit - 40) // len(loaded.model.tokenizer.tokenize("word", add_special_tokens=False))
    (before,) = loaded.counts().values()
    scores = aspects(rollout(t5, [" ".join([sentence] * 30)], ["word " * words]), ["factuality"])
    assert list(loaded.counts().values()) == [before + 1]
    paid = scores["factuality"].rewards[0].nonzero().flatten().tolist()
    assert 0 < len(paid) < 30
    positive = sum(scores["factuality"].rewards[0] > 0).item()
    assert scores["factuality"].metrics["factuality_rate"] == [positive / len(paid)]


def test_separators_in_the_text_are_not_units(aspects):
    model = aspects.scorer.aspects["relevance"].model
    [logits] = model(["question: what is </s> for? answer:"], [["One </s> two", "three"]])
    assert logits.shape == (2, 3)


# --- checkpoints -----------------------------------------------------------------------------------------------------


def test_pytorch_weights_with_extra_keys_load(tmp_path, aspects, t5):
    """The published folders: pytorch_model.bin, buffers that later versions no longer keep."""
    folder = reward_models(tmp_path)
    weights = load_file(folder / "rel_rm" / "model.safetensors")
    weights["longformer.embeddings.position_ids"] = torch.arange(10)[None]
    torch.save(weights, folder / "rel_rm" / "pytorch_model.bin")
    (folder / "rel_rm" / "model.safetensors").unlink()
    batch = rollout(t5, ["Yes. It is the one that they meant."])
    found = qa_aspects(folder, t5, ["relevance"])(batch)
    assert torch.equal(found["relevance"].rewards[0], aspects(batch, ["relevance"])["relevance"].rewards[0])


def test_loading_and_scoring_print_nothing_but_a_bar(models):
    """In a process of its own: what transformers logs here would go round pytest's capture."""
    code = """
import sys
from alarm.models.holistic import HolisticModel
from pathlib import Path
from alarm.models.classifiers import TextScorer, UnitClassifier
HolisticModel.load(sys.argv[2]).score(["Why?"], ["Because."], 99, 1)
UnitClassifier(Path(sys.argv[1]) / "rel_rm", "relevance", "cpu", "float32", 1)(["Why? answer:"], [["Because."]])
TextScorer(Path(sys.argv[1]) / "comp_rm", "completeness", "cpu", "float32", 1)(["Why? answer: Because."])
"""
    command = [sys.executable, "-c", code, str(models), str(CHECKPOINTS / "tiny-ultrarm")]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert (result.returncode, result.stdout) == (0, "")
    assert [line for line in result.stderr.split("\n") if line and not line.startswith("Loading weights:")] == []


def test_a_tokenizer_saved_without_the_prefix_space(tmp_path, aspects, t5):
    """The base model's own setting; words of a list are tokenised with the space all the same."""
    folder = reward_models(tmp_path)
    config = json.loads((folder / "rel_rm" / "tokenizer_config.json").read_text())
    (folder / "rel_rm" / "tokenizer_config.json").write_text(json.dumps(config | {"add_prefix_space": False}))
    state = json.loads((folder / "rel_rm" / "tokenizer.json").read_text())
    state["pre_tokenizer"]["add_prefix_space"] = False
    (folder / "rel_rm" / "tokenizer.json").write_text(json.dumps(state))
    other = UnitClassifier(folder / "rel_rm", "relevance", "cpu", "float32", 8)
    inputs = (["question: why? answer:"], [["Because it is.", "Yes."]])
    assert torch.allclose(other(*inputs)[0], aspects.scorer.aspects["relevance"].model(*inputs)[0], atol=1e-6)


def edit_config(folder: Path, **changes) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: shutil.rmtree(d / "rel_rm"), "relevance.*rel_rm does not exist"),
        (lambda d: (d / "fact_rm" / "config.json").unlink(), "factuality.*config.json"),
        (lambda d: (d / "fact_rm" / "config.json").write_text("{"), "factuality.*config.json"),
        (lambda d: (d / "comp_rm" / "model.safetensors").unlink(), "completeness.*no weights"),
        (
            lambda d: edit_config(d / "rel_rm", architectures=["LongformerForSequenceClassification"]),
            "LongformerForSequenceClassification.*TokenClassification",
        ),
        (lambda d: edit_config(d / "rel_rm", id2label={"0": "O", "1": "F-ERR"}), "2 labels.*3"),
        (lambda d: edit_config(d / "comp_rm", id2label={"0": "no", "1": "yes"}), "2 labels.*1"),
        (
            lambda d: edit_config(d / "rel_rm", id2label={"0": "O", "1": "NF-ERR", "2": "F-ERR"}),
            "labels.*'F-ERR', 'NF-ERR', 'O'.*order",
        ),
    ],
)
def test_wrong_folders_are_found_before_loading(tmp_path, damage, message):
    folder = reward_models(tmp_path)
    check_reward_models(folder)
    damage(folder)
    with pytest.raises(UserError, match=message):
        check_reward_models(folder)


def test_missing_weights_are_named(tmp_path, t5):
    folder = reward_models(tmp_path)
    weights = load_file(folder / "fact_rm" / "model.safetensors")
    save_file(
        {name: weight for name, weight in weights.items() if name != "classifier.weight"},
        folder / "fact_rm" / "model.safetensors",
        metadata={"format": "pt"},
    )
    with pytest.raises(UserError, match=r"factuality.*classifier\.weight"):
        qa_aspects(folder, t5)


def test_published_label_names_are_accepted(tmp_path):
    folder = reward_models(tmp_path)
    edit_config(folder / "rel_rm", id2label={"0": "F-ERR", "1": "NF-ERR", "2": "O"})
    check_reward_models(folder, ["relevance"])


def test_checks_import_no_torch():
    code = (
        "import sys; from alarm.tasks.qa.spec import TASK; from alarm import Aspect, Metric, Task; "
        "assert not {'torch', 'transformers', 'spacy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


# --- data ------------------------------------------------------------------------------------------------------------


def write(path: Path, rows: list) -> Path:
    path.write_text(json.dumps(rows))
    return path


def test_load_examples(tmp_path):
    rows = [{"text": "question: a? context: b", "question": "a?", "answer": ["c"], "passages": []}]
    assert load_examples(write(tmp_path / "data.json", rows)) == rows


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "a?"}, "row 2 has no 'text'"),
        ({"text": "a"}, "row 2 has no 'question'"),
        ({"text": 3, "question": "a?"}, "row 2: 'text' is int"),
        ({"text": " ", "question": "a?"}, "row 2: 'text' is empty"),
        ({"text": "a", "question": "a?", "answer": 3}, "row 2: 'answer' is int"),
        ("a", "row 2 is str"),
    ],
)
def test_bad_rows_are_named(tmp_path, row, message):
    with pytest.raises(UserError, match=message):
        load_examples(write(tmp_path / "data.json", [{"text": "a", "question": "a?"}, row]))
