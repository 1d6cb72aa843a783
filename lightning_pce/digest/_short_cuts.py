"""What a CPU does faster than the definition. Without the folder ``_cpu`` no short cut applies."""

from __future__ import annotations

from lightning_pce.digest._arrays import Array

__all__ = ["add_values", "merge_many"]

try:
    from lightning_pce.digest._cpu import add_values, merge_many
except ModuleNotFoundError:  # pragma: no cover

    def add_values(digest: Array, x: Array) -> Array | None:
        """Values ``[n]`` without weights enter a digest ``[K + 3, 2]``; None where no short cut applies."""
        return None

    def merge_many(digests: Array, compression: int) -> Array | None:
        """Digests ``[M, ..., K + 3, 2]`` become one; None where no short cut applies."""
        return None
