"""Two steps of GRPO and one of RLOO in the real TRL, on CPU. Arguments: a tiny Llama, a folder. Prints JSON."""

import json
import sys

from datasets import Dataset
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

import trl
from alarm import Aspect, HierarchicalReward

checkpoint, folder = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(checkpoint)
tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
config = LlamaConfig(
    vocab_size=len(tokenizer),
    hidden_size=16,
    intermediate_size=32,
    num_hidden_layers=1,
    num_attention_heads=2,
    bos_token_id=tokenizer.bos_token_id,
    eos_token_id=tokenizer.eos_token_id,
    pad_token_id=tokenizer.pad_token_id,
)
LlamaForCausalLM(config).save_pretrained(f"{folder}/start")
tokenizer.save_pretrained(f"{folder}/start")


def holistic(prompts, answers, rows):
    return [len(answer) / 10 - row["aim"] for answer, row in zip(answers, rows, strict=True)]


def vowels(prompts, answers, rows):
    return [
        None if row["aim"] == 9.0 else sum(answer.count(x) for x in "aeiou") / 10
        for answer, row in zip(answers, rows, strict=True)
    ]


def spaces(prompts, answers, rows):
    return [answer.count(" ") / 10 for answer in answers]


aspects = [Aspect("vowels", vowels), Aspect("spaces", spaces)]
reward = HierarchicalReward(holistic, aspects, weights={"vowels": 1.0, "spaces": 2.0}, threshold=2.0)
found = {"version": trl.__version__, "runs": {}}
for name, trainer, settings in (("GRPO", trl.GRPOTrainer, trl.GRPOConfig), ("RLOO", trl.RLOOTrainer, trl.RLOOConfig)):
    for chat in (False, True):
        tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
        texts = ["the sky", "a book", "the sea", "one cat"]
        prompts = [[{"role": "user", "content": text}] if chat else text for text in texts]
        data = Dataset.from_dict({"prompt": prompts, "aim": [1.0, 2.0, 1.0, 2.0]})
        exit, calls = reward.trl(num_generations=2, diagnostics=True, max_length=8), []

        def watched(prompts, completions, exit=exit, calls=calls, **kwargs):
            rewards = exit(prompts, completions, **kwargs)
            rows = [{"aim": aim} for aim in kwargs["aim"]]
            parts = reward.score(prompts, completions, rows)
            calls.append(
                {
                    "rewards": rewards,
                    "total": parts.total.tolist(),
                    "holistic": parts.holistic.mean().item(),
                    "gate_rate": parts.gate.mean().item(),
                    **{name: values.mean().item() for name, values in parts.aspects.items()},
                }
            )
            return rewards

        steps = 2 if name == "GRPO" else 1
        args = settings(
            output_dir=f"{folder}/{name}{chat}",
            max_steps=steps,
            per_device_train_batch_size=4,
            num_generations=2,
            max_completion_length=8,
            logging_steps=1,
            report_to="none",
            save_strategy="no",
            use_cpu=True,
            bf16=False,
            gradient_accumulation_steps=1,
            beta=0.1,
            disable_tqdm=True,
        )
        run = trainer(
            model=f"{folder}/start", reward_funcs=[watched], args=args, train_dataset=data, processing_class=tokenizer
        )
        run.train()
        logs = [row for row in run.state.log_history if "reward" in row]
        found["runs"][f"{name}{' chat' if chat else ''}"] = {"calls": calls, "logs": logs}
nothing = HierarchicalReward(None, aspects, combine="aspect_only", weights={"vowels": 1.0})
found["abstains"] = nothing.trl()(["q", "q"], ["a", "e"], aim=[9.0, 1.0])
print("RESULT " + json.dumps(found))
