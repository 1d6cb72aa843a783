"""A module with the mixin or with metrics is exported as one without, by TorchScript and by torch.export."""

import io

import lightning.pytorch as L
import pytest
import torch

from lightning_pce import (
    BitsPerByte,
    PercentileCECallback,
    PercentileCEMixin,
    PercentileCrossEntropy,
    StreamingQuantiles,
    TokenProxies,
)
from tests.helpers.lit_modules import Returning, TinyLM, fit, make_batches

IDS = make_batches(1)[0]["ids"]


class IdsLM(PercentileCEMixin, TinyLM, L.LightningModule):
    """Takes the ids themselves: TorchScript wants no dict of anything."""

    def __init__(self, metrics=(), **configuration):
        super().__init__()
        self.make_layers()
        if configuration:
            self.configure_percentile_ce(**configuration)
        self.own = torch.nn.ModuleList(metrics)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.embedding(ids))

    def training_step(self, batch, batch_idx):
        return self.update_percentile_ce(self(batch["ids"]), batch["labels"])

    def validation_step(self, batch, batch_idx):
        self.update_percentile_ce(self(batch["ids"]), batch["labels"])


class ReturningIds(Returning):
    forward = IdsLM.forward

    def training_step(self, batch, batch_idx):
        return self(batch["ids"]).mean()

    def validation_step(self, batch, batch_idx):
        return {"logits": self(batch["ids"]), "labels": batch["labels"]}


def new(tmp_path):
    return IdsLM()


def configured(tmp_path):
    return IdsLM(percentiles=(50, 99.9), statistics=("ce", "entropy", "rank"), groups=("prompt", "answer"))


def with_metrics(tmp_path):
    return IdsLM(
        [PercentileCrossEntropy(groups=("a",)), StreamingQuantiles(), BitsPerByte([1] * 11), TokenProxies()]
    )


def fitted(tmp_path):
    module = IdsLM(statistics=("ce", "rank"))
    fit(tmp_path, module)
    return module


def fitted_by_the_callback(tmp_path):
    module = ReturningIds()
    fit(tmp_path, module, PercentileCECallback())
    return module


MODULES = [new, configured, with_metrics, fitted, fitted_by_the_callback]


@pytest.mark.parametrize("made", MODULES)
@pytest.mark.parametrize("method", ["script", "trace"])
def test_torchscript_of_such_a_module_computes_what_the_module_does(tmp_path, made, method):
    module = made(tmp_path)
    file = io.BytesIO()
    torch.jit.save(module.to_torchscript(method=method, example_inputs=IDS), file)
    file.seek(0)
    again = torch.jit.load(file)
    assert torch.equal(again(IDS), module(IDS))
    assert list(again.state_dict()) == list(module.state_dict())


@pytest.mark.parametrize("made", MODULES)
def test_torch_export_of_such_a_module_computes_what_the_module_does(tmp_path, made):
    module = made(tmp_path).eval()
    program = torch.export.export(module, (IDS,))
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    again = torch.export.load(file).module()
    assert torch.equal(again(IDS), module(IDS))
    assert list(program.state_dict) == list(module.state_dict())


def test_what_was_exported_leaves_the_module_as_it_was(tmp_path):
    module = fitted(tmp_path)
    module.to_torchscript()
    torch.export.export(module.eval(), (IDS,))
    trainer = fit(tmp_path, module.train())
    assert float(trainer.callback_metrics["val_ce_p50"]) > 0
