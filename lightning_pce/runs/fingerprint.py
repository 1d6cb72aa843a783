"""What tells two validations of the same data from two of other data, or of data scored in another way."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from lightning_pce import digest as td
from lightning_pce.digest._format import nan_weight_of


def fingerprint(digests: Mapping[str, Tensor], protocol: Mapping[str, Any] | None = None) -> str:
    """A short name of the data of a validation and of how it is scored, the same for every model.

    It depends on the weight of all tokens with labels (those whose loss is NaN too) and of those of each
    group, to twelve digits, and on the protocol. It does not depend on any loss. Other data with as many
    tokens has the same name: where that can be, the user's ``metadata={"data": ...}`` tells them apart. (The
    tokens in each slot of documents are compared beside it: there NaN cannot be told from nothing.)

    Args:
        digests: ``[K + 3, 2]`` of CE by the name of the group, ``""``: all tokens.
        protocol: what else matters, such as ``ignore_index`` and ``shift``.

    Returns:
        16 hexadecimal digits.

    Example:
        >>> import torch
        >>> from lightning_pce.digest import from_values
        >>> first, later = from_values(torch.tensor([3.0, 5.0])), from_values(torch.tensor([1.0, torch.nan]))
        >>> fingerprint({"": first}) == fingerprint({"": later})
        True
        >>> fingerprint({"": first}) == fingerprint({"": first}, protocol={"shift": True})
        False
    """
    counted = {group: _text(td.count(each) + nan_weight_of(each)) for group, each in digests.items()}
    known = {"tokens": counted, "protocol": dict(protocol or {})}
    return hashlib.blake2b(json.dumps(known, sort_keys=True).encode(), digest_size=8).hexdigest()


def _text(number: Any) -> str:
    return f"{float(number):.12g}"
