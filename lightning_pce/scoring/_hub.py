"""Models by their names on the Hugging Face hub."""

from __future__ import annotations

import io
import re
import sys
from contextlib import nullcontext, redirect_stderr
from pathlib import Path

from lightning_pce._errors import UserError
from lightning_pce.scoring._in_words import one_line

# What there is beside the weights; none of it large but tokenizer.json.
_SMALL = ("*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken", "*.py")
# The first that a repository has are taken: no pickle where there is another.
_WEIGHTS = (("model*.safetensors", "adapter_model.safetensors"), ("pytorch_model*.bin", "adapter_model.bin"))
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?(@[\w.-]+)?")


def may_be_on_hub(name: str) -> bool:
    """Whether it has the form ``name``, ``owner/name`` or ``owner/name@revision``."""
    return _NAME.fullmatch(name) is not None and ".." not in name


def offline() -> bool:
    """Whether nothing may be downloaded."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def snapshot(name: str) -> Path:
    """The folder of the newest commit, with everything but the weights, which may be there as well.

    Without a network, and with ``HF_HUB_OFFLINE``, what was downloaded before.

    Raises:
        UserError: if there is no such model, or it was never downloaded and cannot be now.
    """
    return _download(name, name.partition("@")[2] or None, _SMALL)


def fetch_weights(name: str, folder: Path) -> None:
    """Download the weights into the folder of :func:`snapshot` unless they are there."""
    if offline():
        return
    for patterns in _WEIGHTS:
        _download(name, folder.name, patterns)  # the same commit, whatever was pushed meanwhile
        if any(path for pattern in patterns for path in folder.glob(pattern)):
            return


def _download(name: str, revision: str | None, patterns: tuple[str, ...]) -> Path:
    from huggingface_hub import snapshot_download

    # Bars where somebody waits for gigabytes and looks on.
    bars = patterns is not _SMALL and sys.stderr.isatty()
    try:
        with nullcontext() if bars else redirect_stderr(io.StringIO()):
            return Path(
                snapshot_download(
                    name.partition("@")[0],
                    revision=revision,
                    allow_patterns=list(patterns),
                    ignore_patterns=["*/*"],  # other formats of the same weights
                )
            )
    # The hub's and the network's: their classes changed from one version to the next.
    except Exception as error:
        if offline():
            raise UserError(
                f"{name}: no such file or folder, and no model of that name was downloaded before "
                "(HF_HUB_OFFLINE is set)"
            ) from error
        raise UserError(
            f"{name}: no such file or folder, and not to be had from the hub: {one_line(error)}"
        ) from error
