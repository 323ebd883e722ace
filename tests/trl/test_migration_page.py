"""The tables of docs/migration.md against the package: what works is there, what is absent is not, none is left out."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import math
import re
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi
from huggingface_hub.errors import OfflineModeIsEnabled
from tokenizers import Tokenizer, models
from transformers import HfArgumentParser, PreTrainedTokenizerFast

from trl import AutoModelForCausalLMWithValueHead, AutoModelForSeq2SeqLMWithValueHead, PPOConfig, PPOTrainer, core

PAGE = Path(__file__).parents[2] / "docs" / "migration.md"
THERE = {"works", "works, better", "accepted without effect", "new"}
ABSENT = "absent"


def tables() -> dict[str, dict[str, str]]:
    """Heading -> name -> status, of each table of names."""
    found: dict[str, dict[str, str]] = {}
    heading = ""
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            heading = line.lstrip("# ")
        elif row := re.fullmatch(r"\| `([^`|]+)` \| ([^|]+) \|.*\|", line):
            name, status = row.groups()
            rows = found.setdefault(heading, {})
            assert name not in rows, f"{name} is there twice"
            rows[name] = status.strip()
    return found


TABLES = tables()
MODULES = {heading: heading.removeprefix("Names in ") for heading in TABLES if heading.startswith("Names in ")}
FIELDS, CONSTRUCTOR = "Fields of PPOConfig", "Constructor of PPOTrainer"
STATISTICS, LOGGED = "Statistics that step returns", "Names that log_stats adds"
TRAINER = "Attributes and methods of PPOTrainer"
LOADING, MODEL = "Arguments of from_pretrained of the model classes", "Attributes and methods of the model classes"
METHODS = {f"Arguments of PPOTrainer.{name}": name for name in ("generate", "step", "log_stats")}


def named(heading: str, *statuses: str) -> set[str]:
    return {name for name, status in TABLES[heading].items() if status in statuses}


def compare(heading: str, there: set[str]) -> None:
    """`there`: those names of a table that the package has."""
    assert named(heading, *THERE) == there & TABLES[heading].keys()


def parameters(function) -> list[str]:
    return [name for name in inspect.signature(function).parameters if name != "self"]


@pytest.fixture(scope="module")
def trainer(tiny_gpt2) -> PPOTrainer:
    words = Tokenizer(models.WordLevel({f"w{id}": id for id in range(48)}, unk_token="w2"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w0", eos_token="w1")
    torch.manual_seed(0)
    config = PPOConfig(batch_size=2, mini_batch_size=1, gradient_accumulation_steps=2, max_grad_norm=1.0)
    model = AutoModelForCausalLMWithValueHead.from_pretrained(tiny_gpt2)
    return PPOTrainer(config, model, tokenizer=tokenizer, dataset=[0, 1, 2])


def test_the_page_has_each_table_and_each_status():
    headings = {FIELDS, CONSTRUCTOR, STATISTICS, LOGGED, TRAINER, LOADING, MODEL, *METHODS, *MODULES}
    assert headings == set(TABLES)
    assert len(MODULES) == 6 and sum(map(len, TABLES.values())) > 200
    assert {status for rows in TABLES.values() for status in rows.values()} == {*THERE, ABSENT}


@pytest.mark.parametrize("heading", MODULES)
def test_names_of_modules(heading):
    module = importlib.import_module(MODULES[heading])
    there = set()
    for name in TABLES[heading]:
        try:
            getattr(module, name)
            there.add(name)
        except AttributeError:
            pass
    compare(heading, there)


def test_each_helper_is_on_the_page():
    assert set(core.__all__) == named("Names in trl.core", *THERE)
    assert set(importlib.import_module("trl").__all__) <= named("Names in trl", *THERE)


def test_fields_of_the_config():
    fields = {field.name for field in dataclasses.fields(PPOConfig)}
    compare(FIELDS, {name for name in TABLES[FIELDS] if hasattr(PPOConfig(), name)})
    assert fields <= named(FIELDS, *THERE)


def test_fields_without_effect_are_named_in_one_warning():
    ignored = named(FIELDS, "accepted without effect")
    with pytest.warns(UserWarning) as caught:
        PPOConfig(**{name: 2 if name == "dataset_num_proc" else True for name in ignored})
    (message,) = [str(warning.message) for warning in caught if "optimize" in str(warning.message)]
    assert all(name in message for name in ignored)
    with pytest.raises(TypeError):
        PPOConfig(no_such_field=1)


def test_arguments_of_the_constructor():
    """In TRL's order, which a script may rely on."""
    rows = [name for name, status in TABLES[CONSTRUCTOR].items() if status in THERE]
    assert parameters(PPOTrainer.__init__) == rows


@pytest.mark.parametrize("heading", METHODS)
def test_arguments_of_methods(heading):
    assert parameters(getattr(PPOTrainer, METHODS[heading])) == list(TABLES[heading])
    assert named(heading, *THERE) == set(TABLES[heading])


def test_attributes_and_methods_of_the_trainer(trainer):
    compare(TRAINER, {name for name in TABLES[TRAINER] if hasattr(trainer, name)})


def test_statistics(trainer, tiny_gpt2, fresh_accelerate):
    queries = [torch.tensor([5, 6]), torch.tensor([7])]
    responses = [torch.tensor([8, 9, 1]), torch.tensor([10])]
    stats = trainer.step(queries, responses, [torch.tensor(1.0), torch.tensor(0.5)])
    config = PPOConfig(batch_size=2, advantage="rloo")
    compared = PPOTrainer(config, AutoModelForCausalLMWithValueHead.from_pretrained(tiny_gpt2, value_head=False))
    others = compared.step([queries[0]] * 2, responses, [1.0, 0.5], groups=["a", "a"])
    compare(STATISTICS, stats.keys() | others.keys())
    assert not (stats.keys() | others.keys()) - TABLES[STATISTICS].keys()
    assert all("val" in name for name in stats.keys() - others.keys() - {"ppo/grad_norm"})


def test_what_the_tracker_gets(tiny_gpt2, tmp_path, fresh_accelerate):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = PPOConfig(
        batch_size=1, mini_batch_size=1, log_with="tensorboard", project_kwargs={"logging_dir": str(tmp_path)}
    )
    logged = PPOTrainer(config, AutoModelForCausalLMWithValueHead.from_pretrained(tiny_gpt2))
    logged.log_stats({}, {"query": ["a"], "response": ["b"]}, [torch.tensor(1.0)])
    logged.accelerator.end_training()
    tags = set()
    for file in tmp_path.rglob("events.*"):
        events = EventAccumulator(str(file))
        events.Reload()
        tags |= {tag for names in events.Tags().values() if isinstance(names, list) for tag in names}
    assert tags
    compare(LOGGED, tags)


# --- models ----------------------------------------------------------------------------------------------------------

# of arguments that go to transformers and have no default of their own here
VALUES = {
    "token": None,
    "revision": "main",
    "device_map": "cpu",
    "trust_remote_code": False,
    "torch_dtype": torch.float32,
}


@pytest.mark.parametrize("name", TABLES[LOADING])
def test_arguments_of_from_pretrained(name, tiny_gpt2):
    model_class = AutoModelForCausalLMWithValueHead
    known = [*parameters(model_class.from_pretrained), *model_class.supported_args]
    if TABLES[LOADING][name] in THERE:
        assert name in known or name in VALUES
        if name in VALUES:
            model_class.from_pretrained(tiny_gpt2, **{name: VALUES[name]})
    else:
        assert name not in known
        with pytest.raises((TypeError, ValueError)):
            model_class.from_pretrained(tiny_gpt2, **{name: True})


@pytest.mark.parametrize("kind", ["decoder", "encoder-decoder"])
def test_attributes_and_methods_of_the_models(kind, tiny_gpt2, tiny_t5):
    if kind == "decoder":
        model = AutoModelForCausalLMWithValueHead.from_pretrained(tiny_gpt2)
    else:
        model = AutoModelForSeq2SeqLMWithValueHead.from_pretrained(tiny_t5)
    compare(MODEL, {name for name in TABLES[MODEL] if hasattr(model, name)})


# --- sentences of the page -------------------------------------------------------------------------------------------

QUERIES = [torch.tensor([5, 6, 7]), torch.tensor([8, 9])]


def make_trainer(folder: Path, **config) -> PPOTrainer:
    config = {"batch_size": 2, "mini_batch_size": 2, **config}
    return PPOTrainer(PPOConfig(**config), AutoModelForCausalLMWithValueHead.from_pretrained(folder))


def test_the_config_can_be_read_from_a_command_line():
    parser = HfArgumentParser(PPOConfig)
    (config,) = parser.parse_args_into_dataclasses(
        ["--batch_size", "8", "--log_with", "wandb", "--adap_kl_ctrl", "False"]
    )
    assert config == PPOConfig(batch_size=8, log_with="wandb", adap_kl_ctrl=False)
    assert config.global_batch_size == PPOConfig(batch_size=8).global_batch_size


def test_modules_inside_of_trainer_and_models_are_gone():
    for name in ("trl.trainer.ppo_trainer", "trl.models.modeling_value_head"):
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module(name)


def test_a_collator_for_training_has_no_effect(tiny_gpt2, fresh_accelerate):
    model = AutoModelForCausalLMWithValueHead.from_pretrained(tiny_gpt2)
    with pytest.warns(UserWarning, match="training_data_collator has no effect"):
        PPOTrainer(PPOConfig(), model, training_data_collator=list)


def test_the_tracker_opens_when_it_is_needed(tiny_gpt2, tmp_path, fresh_accelerate):
    for start in ("start_tracker", "log_stats"):
        folder = tmp_path / start
        trainer = make_trainer(tiny_gpt2, log_with="tensorboard", project_kwargs={"logging_dir": str(folder)})
        stats = trainer.step(QUERIES, QUERIES, [1.0, 0.5])
        assert not list(folder.rglob("events.*"))
        getattr(trainer, start)(*([stats] if start == "log_stats" else []))
        assert list(folder.rglob("events.*"))
        trainer.accelerator.end_training()


def test_the_example_of_rloo_runs(tiny_gpt2, fresh_accelerate):
    section = PAGE.read_text(encoding="utf-8").partition("## What is new: RLOO and GRPO")[2].partition("\n## ")[0]
    code = "\n".join(line[4:] for line in section.splitlines() if line.startswith("    "))
    names = {
        "name": tiny_gpt2,
        "tokenizer": None,
        "dataset": [{"input_ids": torch.tensor([3, 4 + i])} for i in range(8)],
    }
    names["scores_of"] = lambda queries, responses: [torch.tensor(float(len(r))) for r in responses]
    names |= {c.__name__: c for c in (AutoModelForCausalLMWithValueHead, PPOConfig, PPOTrainer)}
    exec(code, names)
    assert len(names["queries"]) == 32 and names["stats"]["ppo/updates"] == 16
    assert names["stats"]["ppo/groups/std"] > 0


def test_a_short_response_and_a_cut_from_the_end(tiny_gpt2, fresh_accelerate):
    """A classic script's `output[-max_new_tokens:]` then holds a part of the prompt."""
    trainer = make_trainer(tiny_gpt2)
    end = int(trainer.generate(QUERIES[0], max_new_tokens=1, do_sample=False)[0, -1])
    how = {"max_new_tokens": 3, "do_sample": False, "eos_token_id": end}
    output = trainer.generate(QUERIES[0], **how)[0]
    assert output.tolist() == [5, 6, 7, end] and output[-3:].tolist() == [6, 7, end]
    assert trainer.generate(QUERIES[0], return_prompt=False, **how).tolist() == [[end]]


def test_the_last_gradients_stay_until_the_next_call(tiny_gpt2, fresh_accelerate):
    trainer = make_trainer(tiny_gpt2, ppo_epochs=2, max_grad_norm=0.01)

    def gradients() -> list[torch.Tensor]:
        return [parameter.grad for parameter in trainer.model.parameters() if parameter.grad is not None]

    trainer.step(QUERIES, QUERIES, [1.0, 0.5])
    assert len(gradients()) == len(list(trainer.model.parameters()))
    norm = torch.cat([gradient.flatten() for gradient in gradients()]).norm()
    torch.testing.assert_close(float(norm), 0.01, rtol=1e-3, atol=0)  # of one backward batch, clipped
    trainer.generate(QUERIES, max_new_tokens=1)
    assert not gradients()
    trainer.step(QUERIES, QUERIES, [1.0, 0.5])
    trainer.step(QUERIES, QUERIES, [1.0, math.nan])
    assert not gradients()


@pytest.mark.parametrize("way", ["trainer", "best", "model", "save_pretrained"])
def test_what_is_pushed_goes_to_the_hub(way, tiny_gpt2, tmp_path, fresh_accelerate):
    """Which cannot be reached here: the error names it."""
    repository = {"repo_id": "me/model", "private": True}
    trainer = make_trainer(tiny_gpt2, push_to_hub_if_best_kwargs=repository)
    with pytest.raises(OfflineModeIsEnabled, match=r"https://huggingface\.co/"):
        if way == "trainer":
            trainer.push_to_hub(**repository)
        elif way == "best":
            trainer.step(QUERIES, QUERIES, [1.0, 0.5])
        elif way == "model":
            trainer.model.push_to_hub(**repository)
        else:
            trainer.model.save_pretrained(tmp_path / "model", push_to_hub=True, **repository)


def test_what_a_trainer_uploads(tiny_gpt2, monkeypatch, fresh_accelerate):
    calls = {}

    def upload_folder(self, *, folder_path, **kwargs):
        calls["files"] = {path.name for path in Path(folder_path).iterdir()}
        calls["upload"] = kwargs

    def create_repo(self, *args, **kwargs):
        calls["create"] = (*args, kwargs)
        return "address"

    monkeypatch.setattr(HfApi, "create_repo", create_repo)
    monkeypatch.setattr(HfApi, "upload_folder", upload_folder)
    assert make_trainer(tiny_gpt2).push_to_hub("me/model", private=True, commit_message="a step") == "address"
    assert calls["create"] == ("me/model", {"private": True, "exist_ok": True})
    assert calls["upload"] == {"repo_id": "me/model", "commit_message": "a step"}
    assert {"config.json", "model.safetensors", "v_head.safetensors"} <= calls["files"]
