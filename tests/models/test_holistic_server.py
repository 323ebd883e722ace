"""The holistic model behind vLLM's /classify: the local model's scores or one clear line, whatever the server does."""

from __future__ import annotations

import argparse
import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models.vllm_stub import VllmStub, answer, classification, error, model_scores
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from alarm.common.errors import ServiceError, UserError
from alarm.common.flags import HOLISTIC_KEY, check_holistic
from alarm.models.export import main as export
from alarm.models.holistic import PROBE, HolisticModel, probe_difference
from alarm.models.holistic_server import HolisticServer, read_scores
from helpers import CHECKPOINTS

ULTRARM = CHECKPOINTS / "tiny-ultrarm"
PROMPTS = ["Why?", "What is the longest river of them all?", "Who?", "Why?", "one two three four five six seven. " * 9]
ANSWERS = ["Because it is.", "No", "A man who lived a long time ago. " * 5, "Because it is.", "Forty-two."]


@pytest.fixture(scope="module")
def local() -> HolisticModel:
    return HolisticModel.load(ULTRARM)


@pytest.fixture(scope="module")
def scores():
    return model_scores(ULTRARM)


def connected(stub: VllmStub, max_length: int = 128, **kwargs) -> HolisticServer:
    server = HolisticServer(stub.url, ULTRARM, pause=0.01, **kwargs)
    server.connect(max_length)
    return server


def one_line(error) -> str:
    text = str(error.value)
    assert "\n" not in text and len(text) < 700
    return text


# --- scores ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_scores_are_those_of_the_local_model(local, scores, batch_size):
    expected = local.score(PROMPTS, ANSWERS, 60, batch_size)
    with VllmStub(scores) as stub:
        server = connected(stub, 60)
        before = len(stub.asked())
        found = server.score(PROMPTS, ANSWERS, 60, batch_size)
        requests = stub.asked()[before:]
        assert server.score([], [], 60, batch_size).shape == (0,)
        assert len(stub.asked()) == before + len(requests)
    assert found.dtype == torch.float32
    assert torch.allclose(found, expected, atol=1e-5)
    assert len(set(found.tolist())) == 4 and found[0] == found[3]
    # the tokens are ours, each input goes once, and no activation is applied
    assert sorted(row for one in requests for row in one["input"]) == sorted(
        {tuple(row): row for row in local.encode(PROMPTS, ANSWERS, 60)}.values()
    )
    assert max(len(one["input"]) for one in requests) == min(batch_size, 4)
    assert all(one["use_activation"] is False and one["model"] == "stub" for one in requests)
    assert server.truncated == 2  # the last two in the list


def test_requests_go_side_by_side_up_to_a_limit(scores):
    with VllmStub(scores) as stub:
        server = connected(stub, in_flight=3)
        server.score([f"Why {i}?" for i in range(12)], ["So."] * 12, 128, 1)
        assert 1 < stub.most_in_flight <= 3
        assert len(stub.asked()) == 2 + 12


def test_the_probe_is_that_of_the_local_model(local, scores):
    with VllmStub(scores) as stub:
        found = connected(stub).probe()
    assert len(found) == len(PROBE)
    assert found == pytest.approx(local.probe(), abs=1e-5)
    assert probe_difference(local.probe(), found) is None


@pytest.mark.parametrize(
    ("one", "other", "words"),
    [
        ([0.0, 2.0], [0.05, 2.05], None),  # 5% of a standard deviation of 1
        ([0.0, 2.0], [0.0, 2.06], "2.06"),
        ([1.0, 1.0], [1.0, 1.0009], None),
        ([1.0, 1.0], [1.0, 1.002], "1.002"),
        ([0.0, 2.0], [0.0, float("nan")], "nan"),
        ([0.0, 2.0], [0.0], "2 and 1 texts"),
    ],
)
def test_when_two_probes_are_of_one_model(one, other, words):
    found = probe_difference(one, other)
    assert found is None if words is None else words in found


# --- the model as it is served ---------------------------------------------------------------------------------------


def test_a_model_in_the_ultrarm_layout_becomes_a_classifier(local, tmp_path, capsys):
    folder = tmp_path / "classifier"
    export(["--holistic_model", str(ULTRARM), "--save_dir", str(folder), "--dtype", "float32"])
    assert f"vllm serve {folder} --runner pooling" in capsys.readouterr().out
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["LlamaForSequenceClassification"] and len(config["id2label"]) == 1
    names = {"score.weight" if name.startswith("regression_head") else name for name in local.model.state_dict()}
    assert load_file(folder / "model.safetensors").keys() == names
    served = HolisticModel.load(folder)
    assert torch.allclose(served.score(PROMPTS, ANSWERS, 60, 2), local.score(PROMPTS, ANSWERS, 60, 2), atol=1e-6)
    # transformers alone, as vLLM reads it: the head at the last token
    plain = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    rows = local.encode(PROMPTS, ANSWERS, 60)
    with torch.inference_mode():
        logits = [plain(torch.tensor([row])).logits for row in rows]
    assert [one.shape for one in logits] == [(1, 1)] * len(rows)
    found = [one.item() for one in logits]
    assert found == pytest.approx(local.score(PROMPTS, ANSWERS, 60, 1).tolist(), abs=1e-5)

    for model, save_dir, words in ((folder, tmp_path / "again", "already"), (ULTRARM, folder, "holds something")):
        with pytest.raises(SystemExit):
            export(["--holistic_model", str(model), "--save_dir", str(save_dir)])
        assert words in capsys.readouterr().err
    assert not (tmp_path / "again").exists()


# --- answers that are none -------------------------------------------------------------------------------------------

ROWS = [[1, 2, 3], [1, 4], [5]]


def reply(probs=((0.5,), (-2.0,), (3.0,)), tokens=6) -> dict:
    return json.loads(classification(probs, tokens)[2])


def test_a_whole_answer_is_read():
    assert read_scores(reply(), ROWS) == [0.5, -2.0, 3.0]


def changed(**parts) -> dict:
    return reply() | parts


BROKEN = {
    "missing row": ({"data": reply()["data"][:2]}, "2 scores for 3 texts"),
    "one row more": ({"data": [*reply()["data"], {"index": 3, "probs": [1.0]}]}, "4 scores for 3 texts"),
    "other order": ({"data": reply()["data"][::-1]}, r"order.*\[2, 1, 0\]"),
    "twice the same": ({"data": [reply()["data"][0]] * 3}, r"order.*\[0, 0, 0\]"),
    "two labels": ({"data": reply([[1.0, 2.0]] * 3)["data"]}, "2 numbers.*one label"),
    "no label": ({"data": reply([[]] * 3)["data"]}, "0 numbers"),
    "NaN": ({"data": reply([[1.0], [float("nan")], [1.0]])["data"]}, "1 of its 3.*nan"),
    "infinite": ({"data": reply([[1.0], [1e999], [-1e999]])["data"]}, "2 of its 3.*inf"),
    "null": ({"data": reply([[1.0], [None], [1.0]])["data"]}, "1 of its 3.*None"),
    "a word": ({"data": reply([[1.0], ["high"], [1.0]])["data"]}, "1 of its 3.*high"),
    "a bool": ({"data": reply([[1.0], [True], [1.0]])["data"]}, "1 of its 3.*True"),
    "other tokens": ({"usage": {"prompt_tokens": 9}}, "read 9 tokens where 6 were sent"),
    "no usage": ({"usage": None}, "no list of classifications"),
    "no data": ({"data": None}, "no list of classifications"),
    "embedding": ({"data": [{"index": 0, "embedding": [1.0]}] * 3}, "no list of classifications"),
}


@pytest.mark.parametrize(("parts", "words"), BROKEN.values(), ids=BROKEN)
def test_an_answer_that_is_no_list_of_scores_says_what_is_wrong(parts, words):
    with pytest.raises(ValueError, match=words):
        read_scores(changed(**parts), ROWS)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=6), st.randoms(), st.sampled_from(["order", "less", "more"]))
def test_only_the_whole_list_in_its_order_is_taken(values, random, how):
    rows = [[1] * (i + 1) for i in range(len(values))]
    whole = reply([[value] for value in values], sum(map(len, rows)))
    assert read_scores(whole, rows) == values
    data = list(whole["data"])
    if how == "order":
        random.shuffle(data)
        if data == whole["data"]:
            return
    elif how == "less":
        data.pop(random.randrange(len(data)))
    else:
        data.append(data[0])
    with pytest.raises(ValueError):
        read_scores(whole | {"data": data}, rows)


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(max_size=4),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["data", "index", "probs", "usage", "prompt_tokens"]), inner)
        ),
    )
)
def test_no_json_is_taken_for_scores_of_these_rows(content):
    with pytest.raises(ValueError):
        read_scores(content, ROWS)


def test_a_broken_answer_ends_the_run_at_once(scores):
    """Asking again would give the same."""
    with VllmStub(scores) as stub:
        server = connected(stub)
        stub.respond = lambda path, request, number: classification([[float("nan")]], len(request["input"][0]))
        before = len(stub.asked())
        with pytest.raises(ServiceError) as raised:
            server.score(["a"], ["b"], 128, 4)
        assert "nan" in one_line(raised) and stub.url in one_line(raised)
        assert len(stub.asked()) == before + 1


# --- raw scores ------------------------------------------------------------------------------------------------------


def test_a_server_that_ignores_the_switch_of_its_sigmoid_is_refused(scores):
    with VllmStub(scores, old=True) as stub, pytest.raises(UserError) as raised:
        connected(stub)
    assert "use_activation" in one_line(raised)


def test_a_softmax_over_one_label_is_refused(scores):
    """Very old versions: every score is 1."""
    with VllmStub(scores, old=True, activation=lambda _: 1.0) as stub, pytest.raises(UserError, match="use_activation"):
        connected(stub)


def test_a_model_without_an_activation_is_taken(scores):
    """`problem_type` regression: the switch changes nothing, and scores lie beyond 0 and 1."""
    with VllmStub(lambda rows: [5 * score for score in scores(rows)], activation=lambda x: x) as stub:
        found = connected(stub).score(["a"], ["b"], 128, 4)
    assert found.isfinite().all()


# --- faults ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["429", "500", "503", "cut", "html", "drop", "hang"])
def test_faults_change_no_score(local, scores, fault):
    expected = local.score(PROMPTS, ANSWERS, 128, 1)
    whole = {
        "429": error(429, "slow down", Retry_After="0.02"),
        "500": error(500, "the server had an error"),
        "503": error(503, "loading", Retry_After="0.02"),
        "cut": (200, {"Content-Type": "application/json"}, '{"data": [{"ind'),
        "html": (200, {"Content-Type": "text/html"}, "<html>busy</html>"),
    }
    met = []

    def respond(path, request, number):
        if path == "/classify" and len(met) < 3 and number % 2 and not request["use_activation"]:
            met.append(number)
            return whole.get(fault, fault)
        return None

    with VllmStub(scores, hang=0.5) as stub:
        server = connected(stub, timeout=0.2 if fault == "hang" else 60)
        stub.respond = respond
        found = server.score(PROMPTS, ANSWERS, 128, 1)
    assert len(met) == 3
    assert torch.allclose(found, expected, atol=1e-5)
    assert server.failures == 0 if fault in ("429", "503") else server.failures > 0


def test_it_gives_up_after_some_failures_in_a_row(scores):
    with VllmStub(scores) as stub:
        server = connected(stub, max_failures=3, in_flight=1)
        stub.respond = lambda *_: error(500, "out of luck")
        before = len(stub.log)
        with pytest.raises(ServiceError) as raised:
            server.score(PROMPTS, ANSWERS, 128, 1)
        assert len(stub.log) == before + 3
    said = one_line(raised)
    assert "3 times" in said and "out of luck" in said and "--resume" in said


def test_it_does_not_wait_for_hours(scores):
    with VllmStub(scores) as stub:
        server = connected(stub)
        stub.respond = lambda *_: error(429, "busy", Retry_After="4000")
        with pytest.raises(ServiceError) as raised:
            server.score(["a"], ["b"], 128, 1)
    assert "4000" in one_line(raised)


def test_a_server_that_is_gone_and_one_that_comes_back(local, scores):
    with VllmStub(scores) as stub:
        server, port = connected(stub, max_failures=2), stub.port
    with pytest.raises(ServiceError) as raised:
        server.score(["a"], ["b"], 128, 1)
    assert "2 times" in one_line(raised) and "refused" in one_line(raised)
    with VllmStub(scores, port=port) as stub:
        assert torch.allclose(server.score(["a"], ["b"], 128, 1), local.score(["a"], ["b"], 128, 1), atol=1e-5)
        assert len(stub.asked("/v1/models")) == 1  # it was away, so it was looked at again


def test_another_model_that_comes_back_is_refused(scores):
    with VllmStub(scores) as stub:
        server, port = connected(stub, max_failures=2), stub.port
    with pytest.raises(ServiceError):
        server.score(["a"], ["b"], 128, 1)
    with VllmStub(lambda rows: [score + 1 for score in scores(rows)], port=port) as stub:
        with pytest.raises(ServiceError, match="changed while it was away") as raised:
            server.score(["a"], ["b"], 128, 1)
        one_line(raised)
        assert all(len(request["input"]) == len(PROBE) for request in stub.asked())


# --- a server that is none, or another one ---------------------------------------------------------------------------


def test_no_server_is_one_line_at_once(scores):
    with VllmStub(scores) as stub:
        url = stub.url
    with pytest.raises(UserError) as raised:
        HolisticServer(url, ULTRARM).connect(128)
    assert "--holistic_server" in one_line(raised) and url in one_line(raised)


REFUSALS = {
    "no route": (answer({"detail": "Not Found"}, 404), "404.*--runner pooling"),
    "bad request": (error(400, "The model does not support Classification API"), "400.*Classification API"),
    "other input": (answer({"detail": [{"msg": "Input should be a valid string"}]}, 422), "422.*valid string"),
    "redirect": (answer({}, 302, Location="https://elsewhere"), "302.*points to"),
    "no list": (answer({"models": []}), "list of models|list of classifications"),
}


@pytest.mark.parametrize("path", ["/v1/models", "/classify"])
@pytest.mark.parametrize(("planned", "words"), REFUSALS.values(), ids=REFUSALS)
def test_what_is_no_vllm_with_a_classifier_is_one_line(scores, planned, words, path):
    with VllmStub(scores, respond=lambda asked, *_: planned if asked == path else None) as stub:
        with pytest.raises(UserError, match=words) as raised:
            connected(stub)
        assert len(stub.log) == (1 if path == "/v1/models" else 2)
    one_line(raised)


def card(name: str, **parts) -> dict:
    return {"id": name, "root": name, "parent": None, "max_model_len": 4096} | parts


def test_which_of_several_models_is_asked(scores):
    adapter = card("adapter", parent="base")
    with VllmStub(scores, name="rm") as stub:
        stub.cards = [card("rm"), adapter]
        assert connected(stub).model == "rm"
        stub.cards = [card("other"), card("rm", root=str(ULTRARM))]
        assert connected(stub).model == "rm"
        for cards in ([card("other"), card("rm")], [adapter], []):
            stub.cards = cards
            with pytest.raises(UserError, match="it serves") as raised:
                connected(stub)
            one_line(raised)


def test_a_server_that_reads_too_little_is_refused(scores):
    with VllmStub(scores, max_model_len=100) as stub:
        connected(stub, 100)
        with pytest.raises(UserError, match="--max-model-len 101"):
            connected(stub, 101)


# --- the key and the address -----------------------------------------------------------------------------------------


def test_the_key_comes_from_the_environment_and_goes_nowhere_else(scores, monkeypatch):
    monkeypatch.setenv(HOLISTIC_KEY, " secret-word ")
    with VllmStub(scores, key="secret-word") as stub:
        server = connected(stub)
        server.score(["a"], ["b"], 128, 1)
        assert {entry["authorization"] for entry in stub.log} == {"Bearer secret-word"}
        stub.respond = lambda *_: error(400, "secret-word is no model")
        with pytest.raises(ServiceError, match="is no model") as raised:
            server.score(["a"], ["b"], 128, 1)
        assert "secret" not in one_line(raised)


def test_a_refused_key_is_one_line(scores, monkeypatch):
    for key in (None, "wrong-word"):
        monkeypatch.delenv(HOLISTIC_KEY, raising=False)
        if key is not None:
            monkeypatch.setenv(HOLISTIC_KEY, key)
        with VllmStub(scores, key="right-word") as stub, pytest.raises(UserError, match=HOLISTIC_KEY) as raised:
            connected(stub)
        assert "word" not in one_line(raised)


def flags(**parts) -> argparse.Namespace:
    return argparse.Namespace(
        **{"holistic_model": "a/b", "holistic_server": None, "holistic_check": False, "holistic_8bit": False} | parts
    )


@pytest.mark.parametrize(
    ("given", "url", "warned"),
    [
        ("http://localhost:8000/", "http://localhost:8000", False),
        ("http://10.0.0.7:8000/v1", "http://10.0.0.7:8000", False),
        ("http://[::1]:8000/classify", "http://[::1]:8000", False),
        ("https://rm.example.org/v1/", "https://rm.example.org", False),
        ("http://rm.example.org:8000", "http://rm.example.org:8000", True),
    ],
)
def test_addresses(given, url, warned, capsys, monkeypatch):
    monkeypatch.delenv(HOLISTIC_KEY, raising=False)
    args = flags(holistic_server=given)
    check_holistic(args)
    assert args.holistic_server == url
    said = capsys.readouterr().err
    assert ("unencrypted" in said) == warned and "key" not in said
    if warned:
        monkeypatch.setenv(HOLISTIC_KEY, "secret-word")
        check_holistic(args)
        assert "the key" in (said := capsys.readouterr().err) and "secret" not in said


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"holistic_server": "localhost:8000"}, "no http or https URL"),
        ({"holistic_server": "http://user:word@host"}, f"holds a user.*{HOLISTIC_KEY}"),
        ({"holistic_server": "http://host/?key=word"}, "query"),
        ({"holistic_server": "http://host:99999"}, "URL"),
        ({"holistic_server": "http://host", "holistic_model": None}, "needs --holistic_model"),
        ({"holistic_check": True}, "--holistic_check goes with --holistic_server"),
        ({"holistic_server": "http://host", "holistic_model": "./nowhere"}, "no folder ./nowhere"),
    ],
)
def test_flags_that_cannot_work(parts, words):
    with pytest.raises(UserError, match=words) as raised:
        check_holistic(flags(**parts))
    assert "word" not in one_line(raised).replace("password", "")


def test_a_key_that_no_header_carries(monkeypatch):
    monkeypatch.setenv(HOLISTIC_KEY, "se cret")
    with pytest.raises(UserError, match=HOLISTIC_KEY) as raised:
        check_holistic(flags(holistic_server="http://localhost:1"))
    assert "cret" not in one_line(raised)
