"""The expected pass@N against what real samples of an answer hit."""

import math

import pytest
import torch

from lightning_pce import ExpectedPassAtN, token_statistics
from tests.helpers.real_model import smollm2

SAMPLES, NUMBERS = 256, (1, 8, 64)


def expected_of(model, prompt, answers):
    """The metric after one batch: each answer behind the prompt, whose tokens do not count."""
    rows = torch.stack([torch.cat([prompt, answer]) for answer in answers])
    labels = rows.clone()
    labels[:, : len(prompt)] = -100
    with torch.inference_mode():
        scored = token_statistics(model(input_ids=rows).logits, labels, statistics=("ce",), shift=True)
    metric = ExpectedPassAtN(NUMBERS)
    metric.update(losses=scored.ce, mask=scored.valid)
    return metric


def continued(model, prompt, length, number=SAMPLES):
    """Continuations sampled at temperature 1, or a single one of the most probable tokens."""
    sampling = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0} if number > 1 else {}
    with torch.inference_mode():
        rows = model.generate(
            prompt[None],
            attention_mask=torch.ones_like(prompt[None]),
            **sampling,
            max_new_tokens=length,
            min_new_tokens=length,
            num_return_sequences=number,
            pad_token_id=0,
        )
    return rows[:, len(prompt) :]


def hits(samples, answer):
    return int((samples == answer).all(-1).sum())


def of_samples(hit, n):
    """The unbiased estimate of 1 - (1 - p)^n from so many hits in 256: no hit among n of them."""
    return 1 - math.comb(SAMPLES - hit, n) / math.comb(SAMPLES, n)


def check(model, prompts, length):
    """Of the most probable answers, how many of 256 samples are they."""
    answers = [continued(model, prompt, length, number=1)[0] for prompt in prompts]
    pairs = list(zip(prompts, answers, strict=True))
    metrics = [expected_of(model, prompt, [answer]) for prompt, answer in pairs]
    counts = [hits(continued(model, prompt, length), answer) for prompt, answer in pairs]
    p = torch.stack([metric.compute()["pass_at_1"] for metric in metrics])
    assert (p > 2 / SAMPLES).sum() >= len(prompts) // 3  # so that there is something to count
    for hit, each in zip(counts, p.tolist(), strict=True):
        assert abs(hit / SAMPLES - each) <= 4.5 * (each * (1 - each) / SAMPLES) ** 0.5 + 1 / SAMPLES
    together = ExpectedPassAtN(NUMBERS)
    for metric in metrics:
        together.merge_state(metric)
    found = together.compute()
    for n in NUMBERS:
        estimates = torch.tensor([of_samples(hit, n) for hit in counts], dtype=torch.float64)
        # The spread of an estimate over other lots of 256, from the binomial distribution of its hits.
        chances = [
            torch.distributions.Binomial(SAMPLES, each).log_prob(torch.arange(257.0)).exp() for each in p
        ]
        lots = torch.tensor([of_samples(hit, n) for hit in range(SAMPLES + 1)])
        variance = sum((c * lots**2).sum() - (c * lots).sum() ** 2 for c in chances) / len(p) ** 2
        assert abs(estimates.mean() - found[f"pass_at_{n}"]) <= 4 * variance**0.5 + 1e-3, n


def test_a_tiny_model_hits_as_often_as_expected():
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=12, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
        )
    ).eval()
    with torch.no_grad():
        model.lm_head.weight *= 20  # else all answers are alike
    check(model, list(torch.randint(12, (20, 4))), 3)


@pytest.mark.slow
def test_smollm2_hits_as_often_as_expected():
    torch.manual_seed(0)
    model, tokenizer = smollm2()
    prompts = ["The capital of France is", "Two plus two is", "The sun rises in the"]
    check(model, [torch.tensor(tokenizer(prompt)["input_ids"]) for prompt in prompts], 2)
