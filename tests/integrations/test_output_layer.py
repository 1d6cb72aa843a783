"""What models of transformers do to their logits, read from the models themselves."""

import pytest
import torch

from lightning_pce import linear_token_statistics, token_statistics
from lightning_pce.integrations.output_layer import output_layer

transformers = pytest.importorskip("transformers")

SIZES = {
    "vocab_size": 200,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
# kind: settings of its config, the scale and the softcap that are to be found
MODELS = {
    "Llama": ({}, 1.0, None),
    "Cohere": ({"logit_scale": 0.0625}, 0.0625, None),
    "Granite": ({"logits_scaling": 3.0}, 1 / 3, None),
    "HyperCLOVAX": ({"logits_scaling": 3.0}, 3.0, None),
    "Gemma2": ({"final_logit_softcapping": 5.0, "head_dim": 16}, 1.0, 5.0),
    "FalconH1": ({"lm_head_multiplier": 0.25}, 0.25, None),
}
# The oldest transformers that are allowed have not all of them.
MODELS = {kind: model for kind, model in MODELS.items() if hasattr(transformers, f"{kind}ForCausalLM")}


def made_model(kind, settings, dtype=torch.float32):
    """A small model with random weights and large logits, in eval mode."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**SIZES, **settings)
    model = getattr(transformers, f"{kind}ForCausalLM")(config).eval().to(dtype)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(40)
    return model


def assert_statistics_of_hidden_states(model, tolerance=1e-4):
    """Those of the hidden states are those of the model's own logits."""
    ids = torch.randint(200, (2, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        outputs = model(input_ids=ids, output_hidden_states=True)
    found = output_layer(model)
    stats = linear_token_statistics(
        outputs.hidden_states[-1],
        labels=ids,
        shift=True,
        max_logits_bytes=20_000,  # several chunks
        **found._asdict(),
    )
    expected = token_statistics(outputs.logits, ids, shift=True)
    assert expected.ce.max() > 1
    torch.testing.assert_close(stats.ce, expected.ce, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(stats.entropy, expected.entropy, rtol=tolerance, atol=tolerance)
    return found


@pytest.mark.parametrize("kind", MODELS)
def test_statistics_are_those_of_the_models_own_logits(kind):
    settings, scale, softcap = MODELS[kind]
    found = assert_statistics_of_hidden_states(made_model(kind, settings))
    assert found.scale == pytest.approx(scale)
    assert found.softcap == softcap


@pytest.mark.parametrize("kind", ["Cohere", "Gemma2"])
def test_they_are_so_in_bfloat16(kind):
    settings, scale, softcap = MODELS[kind]
    found = assert_statistics_of_hidden_states(made_model(kind, settings, torch.bfloat16), tolerance=0.1)
    assert (found.scale, found.softcap) == (scale, softcap)


def test_an_adapter_on_the_output_layer_is_part_of_it():
    model = made_model("Cohere", {"logit_scale": 0.5, "tie_word_embeddings": False})

    class WithAdapter(torch.nn.Module):
        def __init__(self, base):
            super().__init__()
            self.base = base
            self.down, self.up = torch.nn.Linear(32, 4, bias=False), torch.nn.Linear(4, 200, bias=False)

        def forward(self, x):
            return self.base(x) + 20 * self.up(self.down(x))

    model.lm_head = WithAdapter(model.lm_head)
    assert assert_statistics_of_hidden_states(model).head is model.lm_head


def test_small_logits_do_not_hide_a_softcap():
    model = made_model("Gemma2", MODELS["Gemma2"][0])
    with torch.no_grad():
        model.lm_head.weight.mul_(1e-4)
    assert output_layer(model).softcap == 5.0


def test_what_is_not_known_is_refused():
    class Squared(transformers.LlamaForCausalLM):
        def forward(self, *args, **kwargs):
            outputs = super().forward(*args, **kwargs)
            outputs.logits = outputs.logits**2
            return outputs

    torch.manual_seed(0)
    model = Squared(transformers.LlamaConfig(**SIZES)).eval()
    with pytest.raises(ValueError, match=r"Squared.*off by"):
        output_layer(model)
    with pytest.raises(ValueError, match="LlamaModel has none"):
        output_layer(model.model)
