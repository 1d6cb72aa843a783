"""What decides the numbers of a record, and the key made of it."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from lightning_pce._errors import UserError
from lightning_pce.scoring.documents import ROLES
from lightning_pce.scoring.models import DTYPES
from lightning_pce.scoring.windows import PROTOCOLS

if TYPE_CHECKING:
    from lightning_pce.scoring.data import Dataset

CONTEXT = 2048  # by default at most
# On a CPU each thread has a batch of its own. SmolLM2 gains nothing by more than 500 tokens there.
BATCH_TOKENS = {"cpu": 1024}
BATCH_TOKENS_ELSEWHERE = 8192
# Logits that are made at once. How many rows a product has may change its last bits, so that this does not
# follow the memory that is free. SmolLM2 on a CPU: 170 rows.
PIECE_BYTES = {"cpu": 32 << 20}
PIECE_BYTES_ELSEWHERE = 256 << 20
PIECE_SHARE = 4  # of the memory at most this part: an accelerator also holds what statistics make of them
# Of what TokenProxies makes of a completion; these are its defaults, written down as they are part of keys.
LAST_N = 1000
PROXIES = {"last_n": LAST_N, "inverse": "reciprocal", "gaussian_center": 1.0, "gaussian_width": 1.0}
WITHIN = "sequence"  # where tokens are counted for the weights by frequency, unless other counts are given
# Of the way in which records are made: raised when the same settings would give other numbers.
_VERSION = 1
_UNITS = {"": 1, "K": 10, "M": 20, "G": 30, "T": 40}


@dataclass(frozen=True)
class Settings:
    """How data are scored, as it was asked for.

    Attributes:
        protocol: ``"windows"`` or ``"llama.cpp"``.
        context: how many tokens a model sees at most; None: as many as it can, up to 2,048.
        stride: of windows; None: half of the context.
        bos: a token to put in front of every document; None: the tokenizer's own.
        dtype: of the weights; ``"auto"``: the checkpoint's.
        batch_tokens: of a batch; None: by the kind of device.
        piece_bytes: of logits that are made at once.
        text: whether texts of tokens are kept.
        step: of the training, if it was given.
        trust: whether code that comes with the model may run.
        proxies: None: there are none; else what the weights by frequency are from, :data:`WITHIN` or the key
            of counts.
    """

    protocol: str
    context: int | None
    stride: int | None
    bos: int | None
    dtype: str
    batch_tokens: int | None
    piece_bytes: int
    text: bool
    step: int | None
    trust: bool
    proxies: str | None = None

    def known(self) -> dict[str, Any]:
        """What decides a record, by name; what was added later is there only if it is asked for.

        So the records and the work of older versions are found under their keys.
        """
        own: dict[str, Any] = {
            name: value for name, value in asdict(self).items() if name not in ("trust", "proxies")
        }
        return own if self.proxies is None else {**own, "proxies": {**PROXIES, "frequency": self.proxies}}

    def batch_tokens_on(self, device: str) -> int:
        """How many tokens a batch has."""
        return self.batch_tokens or BATCH_TOKENS.get(device, BATCH_TOKENS_ELSEWHERE)

    def key(self, *, model: str, data: str, name: str, device: str) -> str:
        """16 hexadecimal digits of all that decides a record.

        Args:
            model: the content of the model.
            data: the content of the data.
            name: of the data.
            device: ``"cpu"``, ``"cuda"`` or ``"mps"``.
        """
        known = {
            **self.known(),
            "batch_tokens": self.batch_tokens_on(device),
            "model": model,
            "data": data,
            "name": name,
            "device": device,
            "version": _VERSION,
        }
        return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:16]


def piece_bytes_on(device: str, memory: int) -> int:
    """How many bytes of logits are made at once."""
    return min(PIECE_BYTES.get(device, PIECE_BYTES_ELSEWHERE), memory // PIECE_SHARE)


def check_settings(
    *,
    protocol: str,
    context: int | None,
    stride: int | None,
    dtype: str,
    batch_tokens: int | None,
    step: int | None,
) -> None:
    """Refuse what no data and model make possible.

    Raises:
        UserError: with the option.
    """
    if protocol not in PROTOCOLS:
        raise UserError(f"--protocol {protocol}: take one of {', '.join(PROTOCOLS)}.")
    if dtype not in DTYPES:
        raise UserError(f"--dtype {dtype}: expected one of {', '.join(DTYPES)}")
    if context is not None and context < 2:
        raise UserError(f"--context {context} has no room for a token and the one before it: take 2 or more.")
    if stride is not None and protocol == "llama.cpp":
        raise UserError("--protocol llama.cpp has windows side by side: leave out --stride.")
    if stride is not None and not 1 <= stride <= (context or CONTEXT):
        raise UserError(f"--stride {stride}: take 1 to {context or CONTEXT}, the context.")
    for name, value, least in (("--batch-tokens", batch_tokens, 1), ("--step", step, 0)):
        if value is not None and value < least:
            raise UserError(f"{name} {value}: take {least} or more.")


def check_proxies(
    proxies: bool, token_counts: str | os.PathLike[str] | None, *, group: str | None, protocol: str
) -> None:
    """Refuse what does not go together with proxies, or without them.

    Raises:
        UserError: with the option.
    """
    if not proxies:
        if token_counts is not None:
            raise UserError("--token-counts is what proxies are weighted by: give --proxies too.")
        return
    if protocol == "llama.cpp":
        raise UserError(
            "--proxies are of completions, but --protocol llama.cpp scores half of a text: leave out one."
        )
    if group is not None:
        raise UserError(
            f"--proxies need the groups prompt and completion, which --group {group} replaces: leave out one."
        )


def check_completions(datasets: Sequence[Dataset]) -> None:
    """Refuse data of which it is not known what was asked and what is the solution.

    Raises:
        UserError: with the first file that is such.
    """
    for each in datasets:
        if each.groups != ROLES:
            raise UserError(
                f"--proxies are of solutions, but {each.path} does not say where they begin: give rows of "
                "`prompt` and `completion`, or of `messages` with assistant turns (docs/scoring_data.md)."
            )


def bytes_of(memory: str | int) -> int:
    """A number of bytes as people write it.

    Raises:
        UserError: if it is none, or less than 16 MiB.

    Example:
        >>> bytes_of("512MiB"), bytes_of("1.5 GB"), bytes_of(1 << 30)
        (536870912, 1500000000, 1073741824)
    """
    found = re.fullmatch(r"\s*([0-9.]+)\s*([KMGT]?)(I?)B?\s*", str(memory), flags=re.IGNORECASE)
    try:
        assert found is not None
        unit = _UNITS[found[2].upper()]
        number = int(float(found[1]) * (2**unit if found[3] else 10 ** (unit // 10 * 3)))
    except (AssertionError, ValueError) as error:
        raise UserError(f"--memory {memory}: write a size such as 1GiB or 512MiB.") from error
    if number < 16 << 20:
        raise UserError(f"--memory {memory}: logits and what is made of them need 16MiB or more.")
    return number


def context_of(asked: int | None, config: Any, known: int | None) -> int:
    """How many tokens a model sees at once.

    Args:
        asked: for.
        config: of the model.
        known: how many positions it has, None if it does not say.

    Raises:
        UserError: if more were asked for than it has.
    """
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    trained = rope.get("original_max_position_embeddings")
    trained = trained or getattr(config, "original_max_position_embeddings", None) or known
    # Beyond these the rotary embeddings of such a model follow the longest row of a batch, so that what
    # stands beside a document would change its numbers.
    follows = rope.get("rope_type", rope.get("type")) in ("dynamic", "longrope")
    most = trained if follows else known
    if asked is not None and most is not None and asked > most:
        raise UserError(f"--context {asked}: the model has positions for {most}, take no more.")
    return asked or min(CONTEXT, most or CONTEXT)
