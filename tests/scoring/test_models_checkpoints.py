"""Lightning's .ckpt with a base: the one model in a module's state, strictly, and nothing that runs code."""

import lightning.pytorch as L
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from lightning_pce import PercentileCrossEntropy
from lightning_pce._errors import UserError
from lightning_pce.scoring.models import find_models, load_model, load_tokenizer, step_of, tokenizer_key
from tests.helpers.tiny_checkpoints import change_config, lightning_checkpoint, tiny_checkpoint

IDS = torch.arange(6)[None]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The same model with other weights."""
    return tiny_checkpoint(tmp_path_factory.mktemp("trained"), seed=1)


def loaded(path, base, **settings):
    (source,) = find_models([path], base=base)
    return load_model(source, **settings)


def refused(path, base, **settings):
    with pytest.raises(UserError) as error:
        loaded(path, base, **settings)
    assert "\n" not in str(error.value)
    return str(error.value)


def logits_of(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits


def logits_in(folder):
    return logits_of(AutoModelForCausalLM.from_pretrained(folder).eval())


@pytest.mark.parametrize("prefix", ["", "model.", "net.inner._orig_mod."])
def test_the_weights_are_those_of_the_checkpoint(base, trained, tmp_path, prefix):
    extra = {"val_ce.digest": torch.zeros(2), "head.weight": torch.zeros(3)}
    path = lightning_checkpoint(tmp_path / "a.ckpt", trained, prefix, step=30, extra=extra)
    (source,) = find_models([path], base=base)
    found = load_model(source)
    assert torch.equal(logits_of(found.model), logits_in(trained))
    assert not torch.equal(logits_in(base), logits_in(trained))
    assert found.notes == ("2 other entries of a.ckpt not used: val_ce.digest, head.weight",)
    assert step_of(source) == 30
    assert tokenizer_key(load_tokenizer(source)) == tokenizer_key(load_tokenizer(find_models([base])[0]))


class Module(L.LightningModule):
    def __init__(self, folder, options=None):
        super().__init__()
        self.save_hyperparameters()
        self.lm = AutoModelForCausalLM.from_pretrained(folder)
        self.val_ce = PercentileCrossEntropy()
        self.val_ce.persistent(True)

    def training_step(self, batch, batch_idx):
        return self.lm(input_ids=batch, labels=batch).loss

    def train_dataloader(self):
        return torch.utils.data.DataLoader(torch.arange(24).view(4, 6))

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.01)


def test_a_checkpoint_of_a_real_trainer(trained, base, tmp_path):
    module = Module(str(trained), {"warmup": 3})
    trainer = L.Trainer(
        max_steps=3, accelerator="cpu", logger=False, enable_progress_bar=False, default_root_dir=tmp_path
    )
    trainer.fit(module)
    (path,) = tmp_path.rglob("*.ckpt")
    (source,) = find_models([str(tmp_path / "checkpoints" / "*.ckpt")], base=base)
    found = load_model(source)
    assert torch.equal(logits_of(found.model), logits_of(module.lm.eval()))
    assert not torch.equal(logits_of(found.model), logits_in(trained))
    assert (source.path, source.step, step_of(source)) == (path, 3, 3)
    (note,) = found.notes
    assert "other entries of" in note
    assert "val_ce." in note


def test_a_deeper_model_is_not_taken_for_the_base(base, trained, tmp_path):
    extra = {"model.model.layers.2.mlp.up_proj.weight": torch.zeros(3)}
    path = lightning_checkpoint(tmp_path / "a.ckpt", trained, extra=extra)
    assert "1 entries belong to the model but the base" in refused(path, base)
    computed = {"model.model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(3)}
    path = lightning_checkpoint(tmp_path / "b.ckpt", trained, extra=computed)
    assert torch.equal(logits_of(loaded(path, base).model), logits_in(trained))


def test_no_copy_of_the_base_or_two_are_refused_with_five_keys(base, trained, tmp_path):
    state = load_file(trained / "model.safetensors")
    ema = {f"ema.{name}": value for name, value in state.items()}
    path = lightning_checkpoint(tmp_path / "a.ckpt", trained, extra=ema)
    said = refused(path, base)
    assert "2 whole copies of the base" in said
    assert "keep one of 'model.', 'ema.'" in said
    assert len(said.rpartition("the file has ")[2].removesuffix(" ...").split(", ")) == 5
    del ema["ema.model.norm.weight"]
    half = lightning_checkpoint(tmp_path / "b.ckpt", trained, extra=ema)
    assert "20 other entries" in loaded(half, base).notes[0]
    torch.save({"state_dict": ema}, half)
    said = refused(half, base)
    assert "not all 21 entries of the base" in said
    assert len(said.rpartition("the file has ")[2].removesuffix(" ...").split(", ")) == 5


def test_another_model_than_the_base_is_refused(base, tmp_path):
    other = tiny_checkpoint(tmp_path / "other", vocab="words")
    path = lightning_checkpoint(tmp_path / "a.ckpt", other)
    assert "embed_tokens.weight is (265, 16) but (262, 16) in the base" in refused(path, base)


def test_an_embedding_that_is_the_output_layer_too(base, trained, tmp_path):
    tied = tiny_checkpoint(tmp_path / "tied", tied=True, seed=2)
    tied_base = tiny_checkpoint(tmp_path / "tied_base", tied=True, seed=3)
    both = lightning_checkpoint(tmp_path / "both.ckpt", tied)
    state = torch.load(both, weights_only=True)
    for without in ("model.lm_head.weight", "model.model.embed_tokens.weight"):
        state_dict = {name: value for name, value in state["state_dict"].items() if name != without}
        assert len(state_dict) == 20
        torch.save({**state, "state_dict": state_dict}, tmp_path / "one.ckpt")
        for path in (both, tmp_path / "one.ckpt"):
            found = loaded(path, tied_base)
            assert torch.equal(logits_of(found.model), logits_in(tied))
            assert found.notes == ()
        assert "not all 21 entries of the base" in refused(tmp_path / "one.ckpt", base)
    untied = lightning_checkpoint(tmp_path / "untied.ckpt", trained)
    assert "differ but are one in the base" in refused(untied, tied_base)


@pytest.mark.parametrize(("saved", "asked", "got"), [
    ("bfloat16", "auto", "bfloat16"),
    ("float32", "auto", "float32"),
    ("bfloat16", "float32", "float32"),
])  # fmt: skip
def test_dtype_is_that_of_the_state(base, tmp_path, saved, asked, got):
    folder = tiny_checkpoint(tmp_path / "model", seed=1, dtype=getattr(torch, saved))
    extra = {"metric": torch.zeros(9, dtype=torch.float64)}
    found = loaded(lightning_checkpoint(tmp_path / "a.ckpt", folder, extra=extra), base, dtype=asked)
    assert found.dtype == got
    assert {each.dtype for each in found.model.parameters()} == {getattr(torch, got)}


def test_pickles_are_read_with_trust_only(base, trained, tmp_path):
    path = lightning_checkpoint(tmp_path / "a.ckpt", trained, step=7, hyperparameters={"root": tmp_path})
    said = refused(path, base)
    assert "pathlib" in said
    assert said.endswith("if you trust who made it add --trust")
    (source,) = find_models([path], base=base)
    with pytest.raises(UserError, match="--trust"):
        step_of(source)
    assert step_of(source, trust=True) == 7
    assert torch.equal(logits_of(loaded(path, base, trust=True).model), logits_in(trained))


@pytest.mark.parametrize(("content", "match"), [
    ([1], "it has no `state_dict` of tensors but a list"),
    ({"weights": 1}, "it has no `state_dict` of tensors but only weights"),
    ({"state_dict": {"a": 1}}, "it has no `state_dict` of tensors but only state_dict"),
])  # fmt: skip
def test_files_that_are_no_checkpoint(base, tmp_path, content, match):
    torch.save(content, tmp_path / "a.ckpt")
    assert match in refused(tmp_path / "a.ckpt", base)


def test_an_average_of_weights_is_said(base, trained, tmp_path):
    path = lightning_checkpoint(tmp_path / "a.ckpt", trained)
    torch.save({**torch.load(path, weights_only=True), "averaging_state": {"n_averaged": 3}}, path)
    assert loaded(path, base).notes == ("weights averaged over steps (a.ckpt)",)


def test_a_base_with_fewer_layers_by_its_config_is_refused(base, trained, tmp_path):
    other = tiny_checkpoint(tmp_path / "other")
    change_config(other, num_hidden_layers=1)
    path = lightning_checkpoint(tmp_path / "a.ckpt", trained)
    assert "9 entries belong to the model but the base" in refused(path, other)
