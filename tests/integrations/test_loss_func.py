"""loss_func: in a real Trainer of transformers, and with the arguments that it and trl call it with."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from transformers import Trainer
from transformers.modeling_outputs import CausalLMOutput

from lightning_pce import token_log_prob
from lightning_pce.integrations.transformers import loss_func
from lightning_pce.objectives import DCO, NLL, Power, Threshold
from tests.helpers.hf_trainers import collate, make_model, make_samples, make_trainer, sample_losses

V = 11


def outputs_and_labels(rows=3, length=6):
    labels = torch.randint(0, V, (rows, length))
    labels[:, 0] = labels[0, 2] = -100
    return CausalLMOutput(logits=torch.randn(rows, length, V, requires_grad=True)), labels


def trained(folder, objective, batch, steps, samples):
    """The weights after one step of SGD on all samples."""
    torch.manual_seed(0)
    trainer = make_trainer(
        folder,
        make_model(),
        Trainer,
        train_dataset=samples,
        compute_loss_func=loss_func(objective),
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=steps,
        max_steps=1,
        optim="sgd",
        learning_rate=0.5,
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
    )
    trainer.train()
    return torch.cat([weight.detach().flatten() for weight in trainer.model.parameters()])


@pytest.mark.parametrize("objective", [Power(1), Threshold(NLL(), 0.05)], ids=["power", "threshold"])
def test_four_micro_batches_in_a_trainer_give_the_weights_of_one_batch(tmp_path, objective):
    samples = make_samples(8)
    whole = trained(tmp_path / "whole", objective, 8, 1, samples)
    parts = trained(tmp_path / "parts", objective, 2, 4, samples)
    before = torch.cat([weight.detach().flatten() for weight in make_model().parameters()])
    assert (whole - before).abs().max() > 1e-3
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-5)

    # By hand: the sum over all tokens by their number.
    model = make_model()
    inputs = collate(samples)
    labels = inputs.pop("labels")
    objective(token_log_prob(model(**inputs).logits, labels, shift=True)).backward()
    by_hand = torch.cat([(weight - 0.5 * weight.grad).detach().flatten() for weight in model.parameters()])
    torch.testing.assert_close(whole, by_hand, rtol=0, atol=1e-5)


def test_evaluation_gives_the_cross_entropy_whatever_is_trained_on(tmp_path):
    samples = make_samples(6)
    arguments = {"eval_dataset": samples, "compute_loss_func": loss_func(Power(1))}
    trainer = make_trainer(tmp_path, None, Trainer, per_device_eval_batch_size=6, **arguments)
    expected = sample_losses(trainer.model, samples).mean().item()
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("count", [None, 9, torch.tensor(9), torch.tensor([[9], [9]])])
def test_labels_are_shifted_and_the_sum_is_divided_by_what_the_trainer_counted(count):
    outputs, labels = outputs_and_labels()
    for objective, of_tokens in ((NLL(), lambda ce: ce), (Power(1), lambda ce: 1 - (-ce).exp())):
        ce = F.cross_entropy(outputs.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="none")
        counted = labels[:, 1:].flatten() != -100
        expected = of_tokens(ce)[counted].sum() / (counted.sum() if count is None else 9)
        got = loss_func(objective)(outputs, labels, num_items_in_batch=count)
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=0)


def test_dco_ignores_the_number_of_tokens_and_warns_once():
    outputs, labels = outputs_and_labels()
    compute_loss = loss_func(DCO(4))
    with pytest.warns(UserWarning, match="ignores num_items_in_batch"):
        loss = compute_loss(outputs, labels, num_items_in_batch=torch.tensor(99))
    expected = DCO(4)(token_log_prob(outputs.logits, labels, shift=True))
    assert torch.equal(loss, expected)
    assert torch.equal(compute_loss(outputs, labels, num_items_in_batch=99), expected)


@pytest.mark.filterwarnings("error")
def test_a_number_of_answers_takes_the_place_of_what_the_trainer_counted():
    outputs, labels = outputs_and_labels()
    loss = loss_func(DCO(4), normalizer=12)(outputs, labels, num_items_in_batch=99)
    torch.testing.assert_close(loss, loss_func(DCO(4))(outputs, labels) * 3 / 12)


@pytest.mark.parametrize(
    ("outputs", "words"),
    [
        (CausalLMOutput(logits=None, loss=torch.zeros(())), "chunked_nll"),
        (SimpleNamespace(logits=None), "chunked_nll"),
        (CausalLMOutput(logits=torch.zeros(3, 7, V)), r"logits \(3, 7, 11\)"),
    ],
)
def test_outputs_without_fitting_logits_are_refused_in_a_line(outputs, words):
    _, labels = outputs_and_labels()
    with pytest.raises(ValueError, match=words) as error:
        loss_func(Power(1))(outputs, labels)
    assert "\n" not in str(error.value)


def test_other_arguments_that_make_no_sense_are_refused():
    outputs, _ = outputs_and_labels()
    with pytest.raises(ValueError, match="needs labels"):
        loss_func(Power(1))(outputs, None, num_items_in_batch=None)
    with pytest.raises(ValueError, match="to be an objective"):
        loss_func(F.cross_entropy)
