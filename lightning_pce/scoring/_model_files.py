"""The files of a model on disk: which there are, and what can be wrong with them, found without torch."""

from __future__ import annotations

import json
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning_pce._errors import UserError
from lightning_pce.scoring._in_words import first_five, one_line

# What a tokenizer is made of; the model's own, so that generation_config.json and READMEs are not here.
_TOKENIZERS = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tekken.json",
    "*.tiktoken",
)
_BESIDE_TOKENIZERS = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)
# In the order in which transformers takes them.
_WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
_CAUSAL = ("ForCausalLM", "LMHeadModel")
# These put tokens of their own before the text, so that no logit stands where its token does.
_PROMPT_ADAPTERS = (
    "PROMPT_TUNING",
    "P_TUNING",
    "PREFIX_TUNING",
    "MULTITASK_PROMPT_TUNING",
    "CPT",
    "CARTRIDGE",
)


def read_json(path: Path) -> Mapping[str, Any]:
    """An object in a JSON file.

    Raises:
        UserError: if it is none.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # bytes that are no UTF-8 too
        raise UserError(f"{path}: not JSON ({one_line(error)})") from error
    if not isinstance(found, dict):
        raise UserError(f"{path}: expected a JSON object but it holds a {type(found).__name__}")
    return found


def tokenizer_files(folder: Path) -> list[Path]:
    """All files of its tokenizer; none if there is no vocabulary among them."""
    vocabulary = [path for pattern in _TOKENIZERS for path in sorted(folder.glob(pattern))]
    # The tokenizer of a model with code of its own may be nothing but code.
    if not vocabulary and not _has_code(folder / "tokenizer_config.json"):
        return []
    return [*vocabulary, *(folder / name for name in _BESIDE_TOKENIZERS if (folder / name).is_file())]


def code_files(folder: Path) -> list[Path]:
    """Code that the model brings with it, if its config.json says that it is needed."""
    return sorted(folder.glob("*.py")) if _has_code(folder / "config.json") else []


def check_causal(folder: Path, name: str) -> None:
    """Look into config.json for whether the model predicts the next token.

    A BERT would load as one that does with nothing but a warning, and its numbers would mean nothing.

    Raises:
        UserError: if it does not, or that is not known.
    """
    config = read_json(folder / "config.json")
    architectures = config.get("architectures")
    if not isinstance(architectures, list) or not architectures:
        raise UserError(
            f"{name}: config.json has no `architectures`, so it is not known to be a causal language model; "
            'add for instance "architectures": ["LlamaForCausalLM"]'
        )
    # A model of text and pictures reads text as one of text alone does.
    multimodal = "text_config" in config and any("ForConditionalGeneration" in str(a) for a in architectures)
    causal = multimodal or any(str(each).endswith(_CAUSAL) for each in architectures)
    if not causal or config.get("is_encoder_decoder") is True:
        raise UserError(
            f"{name}: config.json says {', '.join(map(str, architectures))}, which is not a causal language "
            "model (...ForCausalLM)"
        )


def has_weights(folder: Path) -> bool:
    """Whether there are weights of a whole model, whole or not."""
    return any((folder / each).is_file() for each in _WEIGHTS)


def weight_files(folder: Path, name: str) -> list[Path]:
    """The files of the weights that transformers takes, and their index.

    Raises:
        UserError: if there are none, or one is missing or torn.
    """
    first = next((folder / each for each in _WEIGHTS if (folder / each).is_file()), None)
    if first is None:
        raise UserError(f"{name}: no model.safetensors (nor pytorch_model.bin) beside config.json")
    if first.suffix != ".json":
        check_weights(first)
        return [first]
    parts = read_json(first).get("weight_map")
    if not isinstance(parts, dict) or not parts:
        raise UserError(f"{first}: expected a `weight_map` of names to files; copy it again")
    shards = [folder / each for each in sorted({str(part) for part in parts.values()})]
    missing = [shard.name for shard in shards if not shard.is_file()]
    if missing:
        raise UserError(
            f"{name}: {len(missing)} of {len(shards)} files of weights are missing: {first_five(missing)}"
        )
    for shard in shards:
        check_weights(shard)
    return [first, *shards]


def check_adapter(folder: Path, name: str) -> None:
    """Look into adapter_config.json for whether the adapter can be scored.

    Raises:
        UserError: if it cannot.
    """
    config = read_json(folder / "adapter_config.json")
    kind, task = config.get("peft_type"), config.get("task_type")
    if kind in _PROMPT_ADAPTERS:
        raise UserError(
            f"{name}: {kind} puts tokens of its own before the text, which would be scored with it; "
            "adapters that change weights can be scored (LoRA and its like)"
        )
    if task not in (None, "CAUSAL_LM"):
        raise UserError(f"{name}: adapter_config.json says {task}, which is not a causal language model")
    if has_weights(folder):
        raise UserError(
            f"{name}: holds an adapter and a whole model, and which is meant cannot be known; move one away"
        )


def adapter_weights(folder: Path, name: str) -> Path:
    """The file of an adapter's weights.

    Raises:
        UserError: if it is missing or torn.
    """
    weights = next((folder / each for each in _ADAPTER_WEIGHTS if (folder / each).is_file()), None)
    if weights is None:
        raise UserError(f"{name}: no adapter_model.safetensors beside adapter_config.json")
    check_weights(weights)
    return weights


def check_weights(path: Path) -> None:
    """Look whether a file of weights is whole, by its header or its directory.

    Raises:
        UserError: if it is not.
    """
    if path.suffix == ".safetensors":
        _check_safetensors(path)
    else:
        check_torch_file(path)


def check_torch_file(path: Path) -> None:
    """Look whether a file of torch.save is whole: the directory of its ZIP archive is written last.

    Raises:
        UserError: if it is not, or of the format before torch 1.6, a bare pickle.
    """
    with open(path, "rb") as file:
        begin = file.read(4)
    if begin[:2] == b"\x80\x02":
        raise UserError(f"{path}: saved in the format before torch 1.6; load it and torch.save it again")
    if begin != b"PK\x03\x04":
        raise UserError(f"{path}: not a file of torch.save, it begins with {begin!r}")
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    # The last two are what zipfile says of a directory whose bytes are others.
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise UserError(f"{path}: torn, its end is missing (was it still being written?)") from error
    if not any(each.endswith("/data.pkl") for each in names):
        raise UserError(f"{path}: a ZIP archive but not a file of torch.save")


def _check_safetensors(path: Path) -> None:
    size = path.stat().st_size
    with open(path, "rb") as file:
        begin = file.read(8)
        length = struct.unpack("<Q", begin)[0] if len(begin) == 8 else size
        if length > size - 8:
            raise UserError(f"{path}: torn or not safetensors, its header is longer than its {size} bytes")
        header = file.read(length)
    try:
        entries = json.loads(header)
        ends = [entry["data_offsets"][1] for key, entry in entries.items() if key != "__metadata__"]
        whole = 8 + length + max(ends, default=0)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
        raise UserError(f"{path}: torn or not safetensors, its header is not JSON") from error
    if whole != size:
        raise UserError(f"{path}: torn, it has {size} bytes and its header says {whole}; copy it again")


def _has_code(path: Path) -> bool:
    return path.is_file() and "auto_map" in read_json(path)
