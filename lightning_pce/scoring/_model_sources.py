"""Which models are meant by the names that a user gives, found and looked at without torch."""

from __future__ import annotations

import glob
import importlib.util
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lightning_pce._errors import UserError
from lightning_pce.scoring import _hub
from lightning_pce.scoring._gguf_header import read_gguf_header
from lightning_pce.scoring._model_files import (
    adapter_weights,
    check_adapter,
    check_causal,
    check_torch_file,
    code_files,
    has_weights,
    read_json,
    tokenizer_files,
    weight_files,
)

_STEP = re.compile(r"(?<![a-z])(?:checkpoint|step)[-_=]?([0-9]+)", re.IGNORECASE)
_SUFFIXES = (".gguf", ".ckpt", ".safetensors", ".bin", ".json")


@dataclass(frozen=True)
class ModelSource:
    """Where a model is to be found.

    Attributes:
        name: as the user named it; of several that a pattern matched, its path.
        kind: ``"folder"`` (safetensors and config.json), ``"hub"``, ``"gguf"``, ``"ckpt"`` (Lightning's) or
            ``"adapter"`` (PEFT's).
        path: the folder, or the file itself if it is a GGUF or a ``.ckpt``; of the hub the cached snapshot.
        step: of the training run, if the name says it.
        base: of a ``.ckpt`` and an adapter the model that gives everything else; of a folder without
            tokenizer the model that has one.
        of_hub: the name on the hub, None for a local one.
    """

    name: str
    kind: str
    path: Path
    step: int | None = None
    base: ModelSource | None = None
    of_hub: str | None = None


def find_models(
    names: Sequence[str | os.PathLike[str]], *, base: str | os.PathLike[str] | None = None
) -> list[ModelSource]:
    """Find models by name and look at what can be wrong with them without loading one (nor torch).

    Args:
        names: each a folder, a ``.gguf`` file or a folder with one, a Lightning ``.ckpt``, a folder of a PEFT
            adapter, a name on the hub (``owner/name``, ``owner/name@revision``), or a pattern of these
            (``run/checkpoint-*``). What a pattern matches, and names of one run, come in the order of steps.
        base: the model that a ``.ckpt`` or an adapter was trained from, or that has the tokenizer of a
            folder without one.

    Raises:
        UserError: if one is not there, is torn, or is not a causal language model.

    Example:
        >>> import pathlib, tempfile
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> _ = (folder / "config.json").write_text('{"architectures": ["BertForMaskedLM"]}')
        >>> try:
        ...     find_models([folder])
        ... except ValueError as error:
        ...     print(str(error).partition(": ")[2])
        config.json says BertForMaskedLM, which is not a causal language model (...ForCausalLM)
    """
    _need("transformers")
    paths = dict.fromkeys(_in_order(names))  # a pattern and a name may say the same
    if not paths:
        raise UserError("no model was named")
    common = None if base is None else _base(os.fspath(base))
    sources = [_with_base(_source(path), common) for path in paths]
    if any(source.kind == "adapter" for source in sources):
        _need("peft")
    if common is not None and all(source.base is None for source in sources):
        raise UserError(
            f"--base {common.name} is not needed: it is for .ckpt files, adapters and folders without "
            f"tokenizer, and {sources[0].name} is a model by itself"
        )
    return sources


def checked_files(source: ModelSource) -> list[Path]:
    """The files that a source's numbers come from, without those of its base; of the hub all must be there.

    Raises:
        UserError: if one is missing or torn.
    """
    folder, name = source.path, source.name
    if source.kind in ("gguf", "ckpt"):
        return [folder]
    if source.kind == "adapter":
        return [folder / "adapter_config.json", adapter_weights(folder, name), *tokenizer_files(folder)]
    config = folder / "config.json"
    return [config, *weight_files(folder, name), *tokenizer_files(folder), *code_files(folder)]


def step_in(name: str) -> int | None:
    """The step in the last part of a name: ``checkpoint-500``, ``epoch=1-step=500.ckpt``, ``step_500``."""
    last = re.split(r"[/\\]", name.rstrip("/\\"))[-1].rpartition("@")[2]
    found = _STEP.findall(last)
    return int(found[-1]) if found else None


def _in_order(names: Sequence[str | os.PathLike[str]]) -> list[str]:
    """What each name stands for, names of one run in the order of their steps.

    A shell makes several names of a pattern, and puts checkpoint-1000 before checkpoint-200.
    """
    alike: dict[object, list[str]] = {}
    for number, given in enumerate([names] if isinstance(names, (str, os.PathLike)) else names):
        name = os.path.expanduser(os.fspath(given))
        if glob.has_magic(name) and not os.path.lexists(name):
            matches = glob.glob(name, recursive=True)
            if not matches:
                raise UserError(f"{name}: no file or folder matches this pattern")
            alike[number] = matches
        elif step_in(name) is None:
            alike[number] = [name]
        else:
            folder, last = os.path.split(name.rstrip("/\\"))
            alike.setdefault((folder, re.sub(r"[0-9]+", "0", last)), []).append(name)
    return [name for run in alike.values() for name in sorted(run, key=_natural)]


def _natural(name: str) -> tuple[bool, int, list[tuple[int, str]]]:
    """By step, names without one last; then ``a9`` before ``a10``."""
    step = step_in(name)
    # Pairs, as a number and a word can't be compared.
    parts = [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"([0-9]+)", name)]
    return step is None, step or 0, parts


def _base(name: str) -> ModelSource:
    source = _source(os.path.expanduser(name))
    if source.kind in ("ckpt", "adapter"):
        what = "a .ckpt" if source.kind == "ckpt" else "an adapter"
        raise UserError(f"--base {name}: that is itself {what}; name the whole model it came from")
    if source.kind != "gguf" and not tokenizer_files(source.path):
        raise UserError(f"--base {name}: it has no tokenizer.json; name a model that has")
    return source


def _with_base(source: ModelSource, common: ModelSource | None) -> ModelSource:
    if source.kind == "gguf" or (source.kind in ("folder", "hub") and tokenizer_files(source.path)):
        return source
    base = common
    if base is None and source.kind == "adapter":
        base = _own_base(source)
    if base is None:
        why = {"ckpt": "a .ckpt holds weights alone", "adapter": "an adapter holds changes alone"}
        raise UserError(
            f"{source.name}: {why.get(source.kind, 'there is no tokenizer.json in it')}; name the model that "
            "it was trained from by --base MODEL"
        )
    return replace(source, base=base)


def _own_base(source: ModelSource) -> ModelSource | None:
    """The base that an adapter names itself."""
    name = read_json(source.path / "adapter_config.json").get("base_model_name_or_path")
    if not isinstance(name, str) or not name:
        return None
    try:
        return _base(name)
    except UserError as error:
        raise UserError(
            f"{source.name}: the base that it names can't be taken ({error}); name it by --base MODEL"
        ) from error


def _source(name: str) -> ModelSource:
    path = Path(name)
    try:
        is_folder, is_file = path.is_dir(), path.is_file()
    except OSError as error:  # a name too long, a folder that may not be looked into
        raise UserError(f"{name[:80]}: {error.strerror or error}") from error
    if is_file:
        return ModelSource(name, _kind_of_file(path), path, step_in(os.path.abspath(name)))
    if is_folder:
        kind, found = _kind_of_folder(path, name)
        step = step_in(os.path.abspath(name))
        return ModelSource(name, kind, found, step_in(found.name) if step is None else step)
    if not _hub.may_be_on_hub(name) or path.suffix in _SUFFIXES:
        raise UserError(f"{name}: no such file or folder")
    folder = _hub.snapshot(name)
    source = ModelSource(name, _kind_on_hub(folder, name), folder, step_in(name), of_hub=name)
    if _hub.offline():
        checked_files(source)
    return source


def _kind_of_file(path: Path) -> str:
    if path.suffix == ".gguf":
        _check_gguf(path)
        return "gguf"
    if path.suffix == ".ckpt":
        check_torch_file(path)
        return "ckpt"
    if path.suffix in (".safetensors", ".json", ".bin"):
        raise UserError(f"{path}: a part of a model; name its folder")
    raise UserError(f"{path}: not a model; name a folder, a .gguf file or a Lightning .ckpt")


def _kind_of_folder(path: Path, name: str) -> tuple[str, Path]:
    if (path / "adapter_config.json").is_file():
        check_adapter(path, name)
        adapter_weights(path, name)
        return "adapter", path
    files = sorted(path.glob("*.gguf"))
    if has_weights(path) or ((path / "config.json").is_file() and len(files) != 1):
        check_causal(path, name)
        weight_files(path, name)
        return "folder", path
    if len(files) == 1:
        _check_gguf(files[0])
        return "gguf", files[0]
    if files:
        raise UserError(f"{name}: holds {len(files)} .gguf files; name one, for instance {files[0]}")
    for pattern in ("checkpoint-*", "*.ckpt"):
        if any(path.glob(pattern)):
            raise UserError(f"{name}: a folder of checkpoints; name them by {path / pattern}")
    if path.suffix == ".ckpt" or (path / ".metadata").is_file():
        raise UserError(
            f"{name}: a sharded checkpoint; make it one file by "
            "`python -m lightning.pytorch.utilities.consolidate_checkpoint`"
        )
    raise UserError(f"{name}: no model in this folder (neither config.json nor a .gguf nor an adapter)")


def _kind_on_hub(folder: Path, name: str) -> str:
    if (folder / "adapter_config.json").is_file():
        check_adapter(folder, name)
        return "adapter"
    if not (folder / "config.json").is_file():
        raise UserError(f"{name}: no config.json in this repository (download a GGUF and name its file)")
    check_causal(folder, name)
    return "hub"


def _check_gguf(path: Path) -> None:
    _need("gguf")
    header = read_gguf_header(path)
    if header.parts > 1:
        raise UserError(f"{path}: one of {header.parts} parts; join them by `llama-gguf-split --merge`")


def _need(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise UserError(f"models need the package {package}: pip install 'lightning-pce[hf]'")
