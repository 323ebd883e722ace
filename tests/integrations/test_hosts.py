"""The exits, called as each trainer calls them. By hand; against the real package where it can be imported.

docs/trainers says which packages they were run with: put them on PYTHONPATH to run what is skipped here.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import queue
import re
import sys
import threading
import types
import urllib.error
import urllib.request

import pytest
import torch
from transformers import AutoTokenizer

from alarm import Aspect, HierarchicalReward
from alarm.common.errors import UserError
from alarm.integrations.openrlhf import serve
from helpers import CHECKPOINTS


def good(prompts, answers, rows):
    return [float(answer.count("!")) for answer in answers]


def words(prompts, answers, rows):
    return [None if not answer else float(len(answer.split())) for answer in answers]


def broken(prompts, answers, rows):
    raise ValueError("no model")


def reward(holistic=good, **changes) -> HierarchicalReward:
    return HierarchicalReward(
        holistic, [Aspect("words", words)], **{"weights": {"words": 2.0}, "threshold": 1.0} | changes
    )


# "oh no!": h 1, gate open, 2 words: 1 + 2 * 2; "oh no": h 0, gate closed
PAID = {"oh no!": 5.0, "oh no": 0.0}


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(CHECKPOINTS / "tiny-ultrarm")


@pytest.mark.parametrize(
    "make",
    [
        lambda it: it.verl(prompt="q"),
        lambda it: it.openrlhf(types.SimpleNamespace(all_special_tokens=[])),
        lambda it: it.verifiers(),
    ],
)
@pytest.mark.parametrize("change", [{"combine": "decoupled"}, {"combine": "stratified"}])
def test_one_answer_a_call_cannot_be_compared(make, change):
    with pytest.raises(UserError, match=r"compares the answers to one prompt.*one answer a call"):
        make(reward(**change))


def test_an_aspect_cannot_have_a_name_that_logs_use():
    with pytest.raises(UserError, match="holistic"):
        HierarchicalReward(good, [Aspect("holistic", words)], weights={"holistic": 1.0}).trl()


# --- TRL -------------------------------------------------------------------------------------------------------------


def test_trl_by_hand():
    logged, extra = {}, {}
    call = reward().trl()
    assert call.__name__ == "alarm"
    found = call(["q", "q"], ["oh no!", ""], log_metric=logged.__setitem__, log_extra=extra.__setitem__, x=[1, 2])
    assert found == [5.0, 0.0]
    assert logged == {"holistic": 0.5, "gate_rate": 0.5, "words": 2.0}
    assert extra == {"holistic": [1.0, 0.0], "gate": [1.0, 0.0], "words": [2.0, None]}


def test_trl_never_takes_nan_for_an_abstention():
    with pytest.raises(UserError, match="nan"):
        reward(holistic=lambda p, a, r: [math.nan] * len(a)).trl()(["q"], ["oh"])


def test_trl_needs_whole_groups():
    with pytest.raises(UserError, match="num_generations"):
        reward(combine="decoupled").trl()
    call = reward(combine="decoupled").trl(num_generations=2)
    assert len(call(["a", "a", "b", "b"], ["x", "y!", "x", "y! y!"])) == 4
    with pytest.raises(UserError, match="whole groups"):
        call(["a", "a", "b"], ["x", "y!", "x"])
    with pytest.raises(UserError, match="whole groups"):
        call(["a", "b", "a", "b"], ["x", "y!", "x", "z"])


def test_diagnostics_inside_a_trainer(capsys):
    call = reward().trl(diagnostics=True, max_length=4)
    for _ in range(4):
        call(["q"] * 16, ["oh no"] * 15 + ["oh no! no!"], completion_ids=[[1, 2]] * 16)
    for _ in range(12):
        call(["q"] * 16, ["oh no!"] + [""] * 15, completion_ids=[[1, 2]] + [[2]] * 15)
    assert capsys.readouterr().err.count("answers have no text. Try: ") == 1
    call.host.last_words()
    assert "the policy has collapsed" in capsys.readouterr().err


# --- verl ------------------------------------------------------------------------------------------------------------


def test_verl_by_hand():
    compute_score = reward().verl(prompt="question")
    for answer, paid in PAID.items():
        found = compute_score("set", answer, "truth", {"question": "q"})
        assert found == {"score": paid, "holistic": paid and 1.0, "gate": paid and 1.0, "words": 2.0}
    with pytest.raises(UserError, match="question"):
        compute_score("set", "oh", "truth", {})


def test_the_reward_manager_of_verl(tokenizer):
    pytest.importorskip("verl")
    pytest.importorskip("ray")
    from tensordict import TensorDict
    from verl import DataProto

    ids = [tokenizer(text, add_special_tokens=False).input_ids for text in PAID]
    width = max(map(len, ids))
    responses = torch.tensor([row + [0] * (width - len(row)) for row in ids])
    mask = torch.tensor([[1] * 3 + [1] * len(row) + [0] * (width - len(row)) for row in ids])
    batch = TensorDict({"prompts": torch.ones(2, 3).long(), "responses": responses, "attention_mask": mask}, 2)
    raw = [[{"role": "user", "content": "q"}], [{"role": "user", "content": "q"}]]
    import numpy as np

    column = np.empty(2, dtype=object)
    column[:] = raw
    data = DataProto(batch=batch, non_tensor_batch={"raw_prompt": column})
    for tokens in (False, True):
        made = reward().verl_manager(tokens=tokens)(None, tokenizer)
        found = [asyncio.run(made.run_single(data[i : i + 1])) for i in range(2)]
        assert [one["reward_extra_info"]["score"] for one in found] == list(PAID.values())
        scores = type(made).assemble_rm_scores(data, [one["reward_score"] for one in found])
        assert scores.sum(1).tolist() == list(PAID.values()) and not scores[mask[:, 3:] == 0].any()


# --- OpenRLHF --------------------------------------------------------------------------------------------------------


def test_openrlhf_by_hand(tokenizer, capsys):
    call = reward().openrlhf(tokenizer)
    found = call(["<s>say: oh no!</s>"], ["say: "], ["label"])
    assert found["rewards"].tolist() == found["scores"].tolist() == [5.0]
    assert {name: of.tolist() for name, of in found["extra_logs"].items()} == {
        "holistic": [1.0],
        "gate": [1.0],
        "words": [2.0],
    }
    with pytest.raises(SystemExit):  # OpenRLHF catches every Exception, and goes on without a reward
        call(["another text"], ["say: "], ["label"])
    with pytest.raises(SystemExit):
        reward(holistic=broken).openrlhf(tokenizer)(["say: x"], ["say: "], ["label"])
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and "does not contain its prompt" in lines[0] and "no model" in lines[1]


def post(port: int, body: object) -> tuple[int, dict]:
    request = urllib.request.Request(f"http://127.0.0.1:{port}/", json.dumps(body).encode())
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_the_server_for_openrlhf(tokenizer):
    ended = []

    def run(call, port):
        try:
            serve(call, port, "127.0.0.1")
        except UserError as error:
            ended.append(str(error))

    call = reward().openrlhf(tokenizer)
    said: queue.SimpleQueue[str] = queue.SimpleQueue()
    thread = threading.Thread(target=run, args=(call, 0), daemon=True)
    # not capsys: its readouterr() drops what another thread prints between its reading and its emptying
    with contextlib.redirect_stdout(types.SimpleNamespace(write=said.put, flush=lambda: None)):
        thread.start()
        line = said.get(timeout=300)
    port = int(re.search(r"rewards at .*:(\d+)/", line)[1])
    asked = {"query": ["q oh no!", "q oh no"], "prompts": ["q ", "q "], "labels": ["", ""]}
    assert post(port, asked)[1]["rewards"] == list(PAID.values())
    assert post(port, {"query": "x"})[0] == 400 and post(port, [])[0] == 400
    with pytest.raises(UserError, match=f"port {port}"):
        serve(call, port, "127.0.0.1")
    # a reward that fails ends the server
    assert post(port, asked | {"query": ["other", "q oh"]})[0] == 500
    thread.join(timeout=60)
    assert len(ended) == 1 and "does not contain its prompt" in ended[0]


# --- NeMo-RL, open-instruct: no package; the signatures of their sources ---------------------------------------------


def test_nemo_rl_by_hand():
    call = reward().nemo_rl()
    logs = [[{"role": "user", "content": "q"}, {"role": "assistant", "content": answer}] for answer in PAID]
    found = call(logs, [None, None])
    assert {name: of.tolist() for name, of in found.items()} == {"reward/holistic": [1, 0], "reward/words": [4, 0]}
    assert call.weights({"words": 3.0, "holistic": 1.0}) == [1.0, 3.0]  # alphabetical
    with pytest.raises(UserError, match="holistic, words"):
        call.weights({"words": 3.0})
    whole = reward(combine="worst_case").nemo_rl()
    assert whole.names == ("alarm",) and list(whole(logs, [None, None])) == ["reward/alarm"]


def test_open_instruct_by_its_signature(monkeypatch):
    class VerifierFunction:
        def __init__(self, name, weight=1.0, verifier_config=None):
            self.name, self.weight = name, weight

    module = types.ModuleType("open_instruct.ground_truth_utils")
    module.VerifierFunction = VerifierFunction
    module.VerificationResult = lambda score, cost=0.0, reasoning=None: types.SimpleNamespace(**locals())
    monkeypatch.setitem(sys.modules, "open_instruct", types.ModuleType("open_instruct"))
    monkeypatch.setitem(sys.modules, "open_instruct.ground_truth_utils", module)
    verifier = reward().open_instruct()(None)
    assert verifier.name == "alarm" and verifier([1, 2], "oh no!", "label", query="q").score == 5.0


# --- verifiers -------------------------------------------------------------------------------------------------------


def states() -> list[dict]:
    return [{"prompt": "q", "completion": answer, "answer": "", "info": {}, "trajectory": []} for answer in PAID]


@pytest.mark.parametrize("groups", [False, True])
def test_a_rubric_of_verifiers(groups):
    vf = pytest.importorskip("verifiers")
    rubric, scored = vf.Rubric(**reward().verifiers(groups=groups)), states()
    asyncio.run(rubric.score_group(scored))
    assert [state["reward"] for state in scored] == list(PAID.values())
    assert scored[0]["metrics"] == {"alarm": 5.0, "holistic": 1.0, "gate": 1.0, "words": 2.0}
    with pytest.raises(SystemExit):  # verifiers would score 0
        asyncio.run(vf.Rubric(**reward(holistic=broken).verifiers(groups=groups)).score_group(states()))


def test_verifiers_by_hand():
    made = reward().verifiers()
    (state,) = states()[:1]
    assert made["weights"] == [1.0, 0.0, 0.0, 0.0] and [func.__name__ for func in made["funcs"]][1:] == [
        "holistic",
        "gate",
        "words",
    ]
    assert made["funcs"][0]("q", "oh no!", "", state, {}) == 5.0
    assert [func(state) for func in made["funcs"][1:]] == [1.0, 1.0, 2.0]


# --- SkyRL -----------------------------------------------------------------------------------------------------------


def test_token_rewards_of_skyrl(tokenizer):
    ids = [tokenizer(text, add_special_tokens=False).input_ids for text in PAID]

    class Generator:
        async def generate(self, input_batch):
            masks = [[1] * len(row) + [0] for row in ids]
            padded = [[*row, 1] for row in ids]
            return {
                "response_ids": padded, "loss_masks": masks, "rewards": [0.0, 0.0], "prompt_token_ids": [[1], [1]],
                "rollout_metrics": None, "rollout_logprobs": None, "stop_reasons": ["stop"] * 2,
            }  # fmt: skip

    asked = {"prompts": [[{"role": "user", "content": "q"}]] * 2, "env_extras": [{}, {}], "trajectory_ids": None}
    output = asyncio.run(reward().skyrl(Generator(), tokenizer).generate(asked))
    assert [sum(row) for row in output["rewards"]] == list(PAID.values())
    assert [len(row) for row in output["rewards"]] == [len(row) + 1 for row in ids]
    assert [row[-1] for row in output["rewards"]] == [0.0, 0.0]  # not an action
    assert output["rollout_metrics"]["alarm/words"] == 2.0
    try:
        from skyrl.train.utils.trainer_utils import validate_generator_output
    except Exception:  # not here, or what it needs is not
        return
    validate_generator_output(2, output)


# --- ms-swift --------------------------------------------------------------------------------------------------------


def test_ms_swift_by_its_signature(monkeypatch):
    try:
        import swift.rewards  # noqa: F401
    except ImportError:
        module = types.ModuleType("swift.rewards")
        module.ORM = type("ORM", (), {"__init__": lambda self, args=None, **kwargs: None})
        monkeypatch.setitem(sys.modules, "swift", types.ModuleType("swift"))
        monkeypatch.setitem(sys.modules, "swift.rewards", module)
    call = reward().ms_swift()(args=None)
    logs = [[{"role": "user", "content": "q"}, {"role": "assistant", "content": answer}] for answer in PAID]
    assert call(list(PAID), messages=logs, trainer_state=None, response_token_ids=[[[1, 2]], [[1]]]) == [5.0, 0.0]
