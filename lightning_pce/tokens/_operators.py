"""Functions as operators of torch, so that compiled code and autograd take them whole."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual

from lightning_pce._checks import is_transformed
from lightning_pce._errors import UserError

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


def refuse_transformed(name: str, instead: str, *tensors: object) -> None:
    """Raise a ``UserError`` of what torch.func transforms: the tangent would be lost without a word.

    Args:
        name: of the function that was called.
        instead: what can be transformed.
        tensors: what it was given; what is no tensor is not looked at.
    """
    for each in (each for each in tensors if isinstance(each, Tensor)):
        tangent = unpack_dual(each).tangent  # type: ignore[no-untyped-call]  # torch has no type for it
        if is_transformed(each) or tangent is not None:
            raise UserError(
                f"{name} does not go through torch.func (grad, vmap, jvp ...) nor forward-mode gradients: "
                f"take {instead} there."
            )
