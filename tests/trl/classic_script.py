"""A script as users of TRL 0.7 to 0.11 have it: GPT-2 learns to write words of praise. Run by test_classic_script.py.

Only the model, the texts and the reward are small. What it takes from trl, and how, must stay as users write it.
"""

import numpy as np
import torch
from datasets import Dataset
from transformers import AutoTokenizer

from trl import AutoModelForCausalLMWithValueHead, PPOConfig, PPOTrainer, set_seed
from trl.core import LengthSampler

PRAISE = {"good", "great", "fine"}


def build_dataset(config, reviews, input_min_text_length=2, input_max_text_length=6):
    tokenizer = AutoTokenizer.from_pretrained(config.model_name)
    tokenizer.pad_token = tokenizer.eos_token
    ds = Dataset.from_dict({"text": reviews, "stars": [0] * len(reviews)})
    ds = ds.rename_columns({"text": "review"})
    ds = ds.filter(lambda x: len(x["review"]) > 20, batched=False)
    input_size = LengthSampler(input_min_text_length, input_max_text_length)

    def tokenize(sample):
        sample["input_ids"] = tokenizer.encode(sample["review"])[: input_size()]
        sample["query"] = tokenizer.decode(sample["input_ids"])
        return sample

    ds = ds.map(tokenize, batched=False)
    ds.set_format(type="torch")
    return ds


def collator(data):
    return dict((key, [d[key] for d in data]) for key in data[0])  # noqa: C402


def sentiment(texts):
    """The stand-in for a classifier: the share of words of praise."""
    return [{"score": len([w for w in text.split() if w in PRAISE]) / max(len(text.split()), 1)} for text in texts]


def main(model_name, reviews, output_dir, seed=0, one_by_one=False, log_with=None):
    """The mean reward of each step, and those of the reference and the policy after the last."""
    config = PPOConfig(
        model_name=model_name,
        learning_rate=2e-3,
        batch_size=16,
        mini_batch_size=8,
        gradient_accumulation_steps=1,
        optimize_cuda_cache=True,
        early_stopping=False,
        target_kl=0.1,
        init_kl_coef=0.02,
        adap_kl_ctrl=True,
        seed=seed,
        log_with=log_with,
        project_kwargs={"logging_dir": f"{output_dir}/logs"},
    )
    set_seed(config.seed)
    dataset = build_dataset(config, reviews)

    model = AutoModelForCausalLMWithValueHead.from_pretrained(config.model_name)
    ref_model = AutoModelForCausalLMWithValueHead.from_pretrained(config.model_name)
    tokenizer = AutoTokenizer.from_pretrained(config.model_name)
    tokenizer.pad_token = tokenizer.eos_token

    ppo_trainer = PPOTrainer(config, model, ref_model, tokenizer, dataset=dataset, data_collator=collator)
    device = ppo_trainer.accelerator.device

    output_length_sampler = LengthSampler(4, 10)
    generation_kwargs = {
        "min_length": -1,
        "top_k": 0.0,
        "top_p": 1.0,
        "do_sample": True,
        "pad_token_id": tokenizer.eos_token_id,
    }

    mean_rewards = []
    for _epoch, batch in enumerate(ppo_trainer.dataloader):
        query_tensors = batch["input_ids"]

        # get responses from the policy
        if one_by_one:
            response_tensors = []
            for query in query_tensors:
                generation_kwargs["max_new_tokens"] = output_length_sampler()
                query_response = ppo_trainer.generate(query, **generation_kwargs).squeeze()
                response_len = len(query_response) - len(query)
                response_tensors.append(query_response[-response_len:])
        else:
            response_tensors = ppo_trainer.generate(
                query_tensors, return_prompt=False, length_sampler=output_length_sampler, **generation_kwargs
            )
        batch["response"] = [tokenizer.decode(r.squeeze()) for r in response_tensors]

        # score them
        rewards = [torch.tensor(output["score"]) for output in sentiment(batch["response"])]
        mean_rewards.append(float(torch.stack(rewards).mean()))

        # PPO
        stats = ppo_trainer.step(query_tensors, response_tensors, rewards)
        ppo_trainer.log_stats(stats, batch, rewards)

    # the same queries before and after
    after = {}
    queries = dataset[:16]["input_ids"]
    generation_kwargs["max_new_tokens"] = 8
    for name, chosen in [("reference", ref_model), ("policy", model)]:
        texts = []
        for query in queries:
            output = chosen.generate(torch.as_tensor(query).unsqueeze(dim=0).to(device), **generation_kwargs)
            texts.append(tokenizer.decode(output.squeeze()[len(query) :]))
        after[name] = float(np.mean([output["score"] for output in sentiment(texts)]))

    model.save_pretrained(f"{output_dir}/model")
    tokenizer.save_pretrained(f"{output_dir}/model")
    ppo_trainer.save_pretrained(f"{output_dir}/trainer")
    return mean_rewards, after, ppo_trainer
