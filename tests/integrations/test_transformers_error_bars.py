"""Error bars by document from transformers' Trainer."""

import pytest
import torch

from lightning_pce import PercentileCrossEntropy, intervals
from tests.helpers.hf_trainers import FusedLM, collate, make_model, make_samples, make_trainer

SAMPLES = [{**sample, "document": number // 2 - 9} for number, sample in enumerate(make_samples(120))]


def with_documents(per_token):
    """A collator that keeps the ids, of sequences or of tokens."""

    def collated(samples):
        batch = collate(samples)
        ids = torch.tensor([sample["document"] for sample in samples])
        return {**batch, "document": ids[:, None].expand_as(batch["labels"]) if per_token else ids}

    return collated


def wanted(model):
    metric = PercentileCrossEntropy(error_bars=True, shift=True)
    with torch.no_grad():
        for sample in SAMPLES:
            logits = model.eval()(input_ids=sample["input_ids"][None]).logits
            metric.update(logits, sample["labels"][None], document=sample["document"])
    return metric


@pytest.mark.parametrize("per_token", [False, True])
def test_the_batch_says_which_documents_and_the_model_does_not_see_them(tmp_path, per_token):
    model = make_model()
    trainer = make_trainer(
        tmp_path,
        model,
        eval_dataset=SAMPLES,
        train_dataset=SAMPLES[:4],
        data_collator=with_documents(per_token),
        remove_unused_columns=False,
        max_steps=1,
    )
    trainer.configure_percentile_ce(error_bars=True, log_intervals=True)
    metrics = trainer.evaluate()
    result = wanted(model).compute()
    for key in ("mean_low", "mean_high", "p50_low", "p95_high"):
        assert metrics[f"eval_ce_{key}"] == pytest.approx(float(result[key]), rel=1e-4)
    trainer.train()


def test_without_ids_each_sequence_is_a_document(tmp_path):
    trainer = make_trainer(tmp_path, eval_dataset=SAMPLES)
    trainer.configure_percentile_ce(error_bars=True)
    with pytest.warns(UserWarning, match="each row of the labels is one"):
        metrics = trainer.evaluate()
    assert "eval_ce_p50_low" not in metrics
    documents = trainer.percentile_ce.documents("val")[""][""]
    digest = trainer.percentile_ce.digests("val")[""][""]
    assert documents[:, :-1].sum() == sum((sample["labels"][1:] != -100).sum() for sample in SAMPLES)
    assert intervals.interval(digest, documents, "p50").reason is None


@pytest.mark.parametrize("given", ["sequences", "tokens", None])
def test_a_fused_head_that_gives_no_logits_counts_by_document_too(tmp_path, given):
    model = FusedLM()
    collator = collate if given is None else with_documents(given == "tokens")
    trainer = make_trainer(
        tmp_path, model, eval_dataset=SAMPLES, data_collator=collator, remove_unused_columns=False
    )
    trainer.configure_percentile_ce(error_bars=True)
    plain = make_trainer(
        tmp_path, model.lm, eval_dataset=SAMPLES, data_collator=collator, remove_unused_columns=False
    )
    plain.configure_percentile_ce(error_bars=True)
    counts = []
    for each in (trainer, plain):
        each.evaluate()
        counts.append(each.percentile_ce.documents("val")[""][""][:, :-1].sum(-1))
    assert torch.equal(*counts)
    assert counts[0].sum() > 100
