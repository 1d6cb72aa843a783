"""How a model of transformers makes logits of its last hidden states."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_pce.tokens.from_hidden_states import scale_and_cap

__all__ = ["OutputLayer", "output_layer"]


class OutputLayer(NamedTuple):
    """Arguments of :func:`lightning_pce.linear_token_statistics`."""

    head: Callable[[Tensor], Tensor]
    """The output layer."""
    scale: float
    """Logits are multiplied by it."""
    softcap: float | None
    """Then they are limited to it in both directions."""


def output_layer(model: Any) -> OutputLayer:
    """Find what a causal language model of transformers does between hidden states and logits.

    The settings that models have for it are tried, and those are returned that give the model's own logits of
    a few tokens: one name means different things, ``logits_scaling`` divides in Granite and multiplies in
    HyperCLOVA X. This runs the model once, on 8 tokens.

    Args:
        model: of transformers, in eval mode, with ``get_output_embeddings()``, ``config`` and
            ``output_hidden_states``.

    Returns:
        The arguments of :func:`lightning_pce.linear_token_statistics` for this model.

    Raises:
        ValueError: if the model has no output layer, or what it does to its logits is none of what is known.

    Example:
        >>> from transformers import Gemma2Config, Gemma2ForCausalLM
        >>> sizes = {"hidden_size": 8, "intermediate_size": 8, "head_dim": 4, "num_hidden_layers": 1}
        >>> config = Gemma2Config(vocab_size=20, num_attention_heads=2, num_key_value_heads=1, **sizes)
        >>> model = Gemma2ForCausalLM(config).eval()
        >>> output_layer(model).softcap
        30.0
    """
    head = model.get_output_embeddings()
    if head is None:
        raise ValueError(f"Expected a model with an output layer but {type(model).__name__} has none.")
    config = model.config.get_text_config()
    ids = torch.arange(min(8, config.vocab_size), device=model.device)[None]
    with torch.no_grad():
        outputs = model(input_ids=ids, output_hidden_states=True)
        plain = head(outputs.hidden_states[-1])
    expected = outputs.logits
    if plain.shape != expected.shape:
        raise ValueError(
            _unknown(model, f"logits of shape {tuple(plain.shape)}, not {tuple(expected.shape)}")
        )

    def error(settings: tuple[float, float | None]) -> float:
        logits = plain.detach().clone()
        scale_and_cap(logits, *settings)
        return float((logits.double() - expected.double()).abs().max())

    # Settings of the config come first: small logits look the same with a softcap and without.
    errors = {settings: error(settings) for settings in product(_scales(config), _softcaps(config))}
    best = min(errors, key=lambda settings: errors[settings])
    allowed = max(1e-4, 4 * torch.finfo(plain.dtype).eps) * float(expected.double().abs().max())
    if not errors[best] <= allowed:
        raise ValueError(_unknown(model, f"logits that are off by {errors[best]:.2g}"))
    return OutputLayer(head, *best)


def _scales(config: Any) -> Iterator[float]:
    for name in ("logit_scale", "lm_head_multiplier", "output_multiplier"):
        if value := getattr(config, name, None):
            yield float(value)
    if value := getattr(config, "logits_scaling", None):
        yield 1 / value
        yield float(value)
    yield 1.0


def _softcaps(config: Any) -> Iterator[float | None]:
    if value := getattr(config, "final_logit_softcapping", None):
        yield float(value)
    yield None


def _unknown(model: Any, difference: str) -> str:
    return (
        f"Expected a model whose logits are those of its output layer, scaled or capped, but of "
        f"{type(model).__name__} these give {difference}. Score its logits instead, and if it is in training "
        "mode call eval() before."
    )
