"""PEFT adapters: all of their weights over the base, or a word why not."""

import json

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from lightning_pce._errors import UserError
from lightning_pce.scoring.models import content_key, find_models, load_model, load_tokenizer
from tests.helpers.tiny_checkpoints import tiny_checkpoint, tiny_tokenizer

IDS = torch.arange(6)[None]
LORA = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "v_proj"])


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp("base"))


def adapter_of(base, folder, config=LORA):
    """Save an adapter that changes the base, as peft does; returns the logits with it."""
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        for name, parameter in model.named_parameters():
            if "lora" in name:
                parameter.normal_(std=0.3)
        model.save_pretrained(folder)
        return model.eval()(input_ids=IDS).logits


@pytest.fixture
def adapter(base, tmp_path):
    adapter_of(base, tmp_path / "checkpoint-70")
    return tmp_path / "checkpoint-70"


def loaded(path, base=None, **settings):
    (source,) = find_models([path], base=base)
    return load_model(source, **settings)


def logits_of(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits


def refused(path, base=None):
    with pytest.raises(UserError) as error:
        loaded(path, base)
    assert "\n" not in str(error.value)
    return str(error.value)


def edit(folder, **entries):
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**config, **entries}), encoding="utf-8")


@pytest.mark.parametrize("config", [
    LORA,
    LoraConfig(r=4, target_modules="all-linear", use_dora=True),
    LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj"], modules_to_save=["lm_head"]),
    LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "embed_tokens"]),
])  # fmt: skip
@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")
def test_an_adapter_gives_its_logits_over_the_base(base, tmp_path, config):
    expected = adapter_of(base, tmp_path / "checkpoint-70", config)
    (source,) = find_models([tmp_path / "checkpoint-70"], base=base)
    found = load_model(source)
    assert torch.equal(logits_of(found.model), expected)
    assert not torch.equal(expected, logits_of(loaded(base).model))
    assert (source.kind, source.step) == ("adapter", 70)
    assert (found.dtype, found.context, found.vocabulary) == ("float32", 64, 262)
    assert found.notes == (f"adapter over {base}",)


def test_the_base_that_an_adapter_names_is_taken(adapter, base, tmp_path):
    assert torch.equal(logits_of(loaded(adapter).model), logits_of(loaded(adapter, base).model))
    edit(adapter, base_model_name_or_path="owner/away")
    assert "the base that it names can't be taken (owner/away: no such" in refused(adapter)
    assert loaded(adapter, base).notes == (f"adapter over {base} (trained from owner/away)",)
    edit(adapter, base_model_name_or_path=None)
    assert "name the model that it was trained from by --base" in refused(adapter)


def test_the_key_is_of_adapter_and_base(adapter, base, tmp_path):
    other = tiny_checkpoint(tmp_path / "other", seed=1)
    weights = adapter / "adapter_model.safetensors"
    keys = [content_key(find_models([adapter], base=each)[0]) for each in (base, other)]
    save_file({name: value + 1 for name, value in load_file(weights).items()}, weights)
    keys.append(content_key(find_models([adapter], base=base)[0]))
    assert len(set(keys)) == 3


def test_the_tokenizer_is_its_own_or_the_bases(adapter, base):
    (source,) = find_models([adapter], base=base)
    assert len(load_tokenizer(source)) == 262
    own = tiny_tokenizer()
    own.add_tokens(["<user>"])
    own.save_pretrained(adapter)
    assert len(load_tokenizer(source)) == 263


def test_weights_that_do_not_fit_are_not_left_out(adapter, base):
    file = adapter / "adapter_model.safetensors"
    weights = load_file(file)
    first = min(weights)
    save_file({name: value for name, value in weights.items() if name != first}, file)
    assert f"1 weights are in the adapter's file or in its model alone: {first}" in refused(adapter)
    save_file({**weights, "base_model.model.x.lora_A.weight": torch.zeros(2)}, file)
    assert "1 weights are in the adapter's file or in its model alone: base_model.model.x" in refused(adapter)
    save_file({name: torch.zeros(3, 3) for name in weights}, file)
    assert "does not fit the base" in refused(adapter)
    file.write_bytes(file.read_bytes()[:-1])
    assert "torn" in refused(adapter)
    file.unlink()
    assert "no adapter_model.safetensors" in refused(adapter)


def test_adapters_that_cannot_be_scored(adapter, base, tmp_path):
    adapter_of(base, tmp_path / "prompt", PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    assert "PROMPT_TUNING puts tokens of its own before the text" in refused(tmp_path / "prompt")
    edit(adapter, task_type="SEQ_CLS")
    assert "SEQ_CLS, which is not a causal language model" in refused(adapter)
    edit(adapter, task_type="CAUSAL_LM")
    assert "that is itself an adapter" in refused(base, adapter)
    tiny_checkpoint(adapter)
    assert "holds an adapter and a whole model" in refused(adapter)


def test_a_pickle_in_an_adapter_is_not_read(adapter, tmp_path):
    (adapter / "adapter_model.safetensors").unlink()
    torch.save({"x": tmp_path}, adapter / "adapter_model.bin")
    assert "holds more than tensors" in refused(adapter)
