"""Functions as operators of torch, so that compiled code and autograd take them whole."""

from __future__ import annotations

from typing import Any

import torch

# Not torch.library.custom_op: at its first call that imports torch._dynamo, 3 seconds. The schemas are
# written out because torch 2.4 cannot read annotations that are strings.
_torch_library: Any = torch.library  # some of whose functions have no types
_LIBRARY = _torch_library.Library("lightning_pce", "FRAGMENT")


def operator(schema: str, real: Any, fake: Any, backward: Any = None, remember: Any = None) -> Any:
    """The operator ``torch.ops.lightning_pce.NAME``, which runs a function on any device.

    Args:
        schema: ``"NAME(Tensor x) -> Tensor"``.
        real: what it does; it may look at numbers and start threads.
        fake: what compiled code sees: new tensors of the right shapes and dtypes.
        backward: its gradient, from a context and the gradients of what it returned; None: it has none.
        remember: what the context keeps: a function of it, the inputs and what was returned.
    """
    name = schema.partition("(")[0]
    _LIBRARY.define(schema)
    _LIBRARY.impl(name, real, "CompositeExplicitAutograd")
    _torch_library.register_fake(f"lightning_pce::{name}", fake, lib=_LIBRARY)
    if backward is not None:
        _torch_library.register_autograd(
            f"lightning_pce::{name}", backward, setup_context=remember, lib=_LIBRARY
        )
    return getattr(torch.ops.lightning_pce, name).default
