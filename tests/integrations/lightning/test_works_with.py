"""The mixin and metrics beside what else a run may hold: what docs/works_with.md has no other test for."""

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import BatchSizeFinder, LearningRateFinder
from torch.nn.utils import parametrize
from torch.utils.data import DataLoader, WeightedRandomSampler, default_collate
from torchmetrics.wrappers import BootStrapper, MetricTracker, MinMaxMetric, MultioutputWrapper

from lightning_pce import PercentileCrossEntropy
from tests.helpers.lit_modules import (
    IGNORED,
    LitLM,
    Oracle,
    TrainedLM,
    assert_logged,
    fit,
    make_batches,
    make_loader,
    make_trainer,
    token_losses,
)


def assert_epochs(oracle, number):
    """The percentiles of each validation and of each epoch of training are those of their own tokens."""
    assert len(oracle.single) == len(oracle.epochs) == number
    for losses, logged in oracle.single:
        assert_logged(logged, losses)
    for losses, logged in oracle.epochs:
        assert_logged(logged, losses, "train")


class LastRun(Oracle):
    """Begins anew with each fit: tuners try training steps before."""

    def on_fit_start(self, trainer, module):
        self.runs, self.epochs, self._train_losses = [], [], []


class BatchSizedLM(TrainedLM):
    """Takes sequences one by one, in batches of ``batch_size``, and has the learning rate as an attribute."""

    batch_size, lr = 1, 0.1

    def train_dataloader(self):
        return self.sequences(1)

    def val_dataloader(self):
        return self.sequences(2)

    def sequences(self, seed):
        (batch,) = make_batches(1, seed, sequences=8)
        samples = [{key: part[i] for key, part in batch.items()} for i in range(8)]
        return DataLoader(samples, batch_size=self.batch_size, collate_fn=default_collate)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.lr)


@pytest.mark.parametrize(
    "tuner",
    [
        lambda: BatchSizeFinder(steps_per_trial=1, max_trials=2),
        lambda: LearningRateFinder(num_training_steps=24, min_lr=1e-3, attr_name="lr"),
    ],
    ids=["batch size", "learning rate"],
)
def test_the_trial_steps_of_a_tuner_are_not_measured(tmp_path, tuner):
    module, oracle = BatchSizedLM(), LastRun()
    # Both tuners save the state of the run before their trials and need leave to write it.
    trainer = make_trainer(tmp_path, tuner(), oracle, max_epochs=2, enable_checkpointing=True)
    trainer.fit(module)
    assert (module.batch_size, module.lr) != (1, 0.1)
    # With Lightning 2.5 the trial of the learning rate uses up an epoch, which then ends without a step.
    epochs = trainer.global_step // len(module.train_dataloader())
    assert epochs >= 1
    assert_epochs(oracle, epochs)


class Adapter(torch.nn.Module):
    """LoRA as a parametrization: the weight, which is frozen, plus a product of two small matrices."""

    def __init__(self, weight, rank=2):
        super().__init__()
        self.down = torch.nn.Parameter(torch.full((rank, weight.shape[1]), 0.1))
        self.up = torch.nn.Parameter(torch.zeros(weight.shape[0], rank))

    def forward(self, weight):
        return weight + self.up @ self.down


def test_adapters_on_a_frozen_model_train_and_are_measured(tmp_path):
    module, oracle = TrainedLM(), Oracle()
    module.requires_grad_(False)
    parametrize.register_parametrization(module.head, "weight", Adapter(module.head.weight))
    fit(tmp_path, module, oracle, max_epochs=2)
    assert module.head.parametrizations.weight[0].up.any()
    assert_epochs(oracle, 2)


VIRTUAL = 3


class PromptTunedLM(LitLM):
    """Learned vectors stand before the tokens, and the logits are longer than the labels."""

    def __init__(self, cut):
        super().__init__()
        self.prompt, self.cut = torch.nn.Parameter(torch.zeros(VIRTUAL, 8)), cut

    def forward(self, batch):
        tokens = self.embedding(batch["ids"])
        prompt = self.prompt.expand(len(tokens), -1, -1)
        logits = 3 * self.head(torch.cat([prompt, tokens], dim=1))
        return logits[:, VIRTUAL:] if self.cut else logits


def test_logits_of_virtual_tokens_are_refused_until_they_are_cut_off(tmp_path):
    trainer, data = make_trainer(tmp_path), make_loader(2)
    with pytest.raises(ValueError, match=r"labels \(2, 5\) for logits \(2, 8, 11\)"):
        trainer.validate(PromptTunedLM(cut=False), data, verbose=False)
    module = PromptTunedLM(cut=True)
    result = make_trainer(tmp_path).validate(module, data, verbose=False)[0]
    assert_logged(result, torch.cat([token_losses(module, batch) for batch in data]))


def test_a_compiled_step_and_a_compiled_submodule_log_the_same(tmp_path):
    oracle, module = Oracle(), TrainedLM()
    module.head = torch.compile(module.head, backend="eager")
    module.training_step = torch.compile(module.training_step, backend="eager")
    fit(tmp_path, module, oracle, max_epochs=2)
    torch._dynamo.reset()
    assert_epochs(oracle, 2)


def test_a_full_graph_takes_the_model_and_not_the_update():
    metric, model = PercentileCrossEntropy((50,)), torch.nn.Linear(8, 11)
    x, labels = torch.randn(4, 8), torch.tensor([1, 2, 3, 4])

    @torch.compile(backend="eager", fullgraph=True)
    def step(x):
        metric.update(model(x), labels)

    torch._dynamo.reset()
    with pytest.raises(torch._dynamo.exc.Unsupported):
        step(x)
    metric.update(torch.compile(model, backend="eager", fullgraph=True)(x), labels)
    torch._dynamo.reset()
    expected = F.cross_entropy(model(x), labels)
    assert float(metric.compute()["mean"]) == pytest.approx(float(expected.detach()))


class IdsLM(LitLM):
    """Its forward takes ids alone, as an exported program does."""

    def forward(self, ids):
        return super().forward({"ids": ids})

    def training_step(self, batch, batch_idx):
        return self.update_percentile_ce(self(batch["ids"]), batch["labels"])

    def validation_step(self, batch, batch_idx):
        self.update_percentile_ce(self(batch["ids"]), batch["labels"])


def test_a_module_that_was_fitted_is_exported_by_torch_export(tmp_path):
    module, (batch,) = IdsLM(), make_batches(1)
    fit(tmp_path, module)
    program = torch.export.export(module.eval(), (batch["ids"],))
    assert torch.equal(program.module()(batch["ids"]), module(batch["ids"]))


class Scorer(torch.nn.Module):
    """A model that holds its metric, and measures outside of forward."""

    def __init__(self):
        super().__init__()
        self.head = torch.nn.Linear(8, 11)
        self.ce = PercentileCrossEntropy()

    def forward(self, x):
        return self.head(x)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch.jit, and of torchmetrics' own properties
def test_a_model_that_holds_a_metric_is_scripted():
    model, x = Scorer(), torch.randn(2, 8)
    model.ce.update(model(x), torch.tensor([1, 2]))
    assert torch.equal(torch.jit.script(model)(x), model(x))


def test_a_functional_call_measures_the_weights_it_is_given(tmp_path):
    class FunctionalLM(LitLM):
        def validation_step(self, batch, batch_idx):
            doubled = {name: 2 * weight for name, weight in self.named_parameters()}
            logits = torch.func.functional_call(self, doubled, (batch,))
            seen.append((logits, batch["labels"]))
            self.update_percentile_ce(logits, batch["labels"])

    seen = []
    result = make_trainer(tmp_path).validate(FunctionalLM(), make_loader(2), verbose=False)[0]
    logits, labels = (torch.cat(parts).flatten(0, 1) for parts in zip(*seen, strict=True))
    losses = F.cross_entropy(logits, labels, reduction="none")
    assert_logged(result, losses[labels != IGNORED])


def test_per_sample_losses_of_vmap_are_measured_outside_of_it():
    logits, labels = torch.randn(4, 6, 11), torch.randint(11, (4, 6))

    def losses_of_one(logits, labels):
        return F.cross_entropy(logits, labels, reduction="none")

    metric = PercentileCrossEntropy((50,))
    metric.update(losses=torch.func.vmap(losses_of_one)(logits, labels))
    direct = PercentileCrossEntropy((50,))
    direct.update(logits, labels)
    torch.testing.assert_close(metric.compute(), direct.compute())


def bootstrapped(metric):
    return BootStrapper(metric, num_bootstraps=4)


def two_outputs(metric):
    return MultioutputWrapper(metric, num_outputs=2)


@pytest.mark.parametrize("wrap", [bootstrapped, two_outputs, MinMaxMetric])
def test_wrappers_that_want_one_number_refuse_the_dict(wrap):
    wrapped = wrap(PercentileCrossEntropy((50,)))
    wrapped.update(losses=torch.rand(40, 2))
    with pytest.raises((TypeError, RuntimeError), match=r"dict|scalar"):
        wrapped.compute()


def test_a_view_is_the_one_number_that_minmax_wants():
    metric = PercentileCrossEntropy((50,))
    extremes = MinMaxMetric(metric.view("p50"))
    for losses in (torch.tensor([1.0, 2.0, 6.0]), torch.tensor([3.0, 4.0, 5.0])):
        metric.reset()
        metric.update(losses=losses)
        result = extremes.compute()
    assert [float(result[key]) for key in ("raw", "min", "max")] == [4.0, 2.0, 4.0]


def test_a_tracker_keeps_all_results_and_knows_no_best():
    tracker = MetricTracker(PercentileCrossEntropy((50,)), maximize=False)
    for losses in (torch.tensor([3.0]), torch.tensor([2.0])):
        tracker.increment()
        tracker.update(losses=losses)
    with pytest.raises(TypeError):
        tracker.best_metric()
    assert int(tracker.compute_all()["p50"].argmin()) == 1


def test_a_sampler_that_draws_a_sample_twice_counts_it_twice(tmp_path):
    (batch,) = make_batches(1, sequences=4)
    samples = [{key: part[i] for key, part in batch.items()} for i in range(4)]
    sampler = WeightedRandomSampler([1, 1, 1, 5], 12, generator=torch.Generator().manual_seed(0))
    data, module = DataLoader(samples, batch_size=4, sampler=sampler), LitLM()
    oracle = Oracle()
    make_trainer(tmp_path, oracle).validate(module, data, verbose=False)
    losses, logged = oracle.single[0]
    assert len(losses) > (batch["labels"] != IGNORED).sum()
    assert_logged(logged, losses)


def test_a_module_built_on_the_meta_device_is_measured_once_it_has_weights(tmp_path):
    with torch.device("meta"):
        module = TrainedLM(percentiles=(50,))
    module.to_empty(device="cpu")
    module.load_state_dict(TrainedLM().state_dict())
    oracle = Oracle()
    fit(tmp_path, module, oracle)
    assert_logged(oracle.single[0][1], oracle.single[0][0], percentiles=(50,))
