"""Functions that torch.compile leaves alone."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from types import CodeType
from typing import Any, TypeVar, cast

import torch

_Function = TypeVar("_Function", bound=Callable[..., Any])


def not_compiled(function: _Function) -> _Function:
    """Leave a function and all that it calls out of ``torch.compile``, as ``torch.compiler.disable`` does.

    ``torch.compiler.disable`` imports torch._dynamo, which takes as long as importing torch. Here that waits
    until something is compiled, which imports it too.

    Example:
        >>> @not_compiled
        ... def double(x):
        ...     return 2 * x
        >>> double(3)
        6
    """
    disable: Callable[[_Function], _Function] = torch.compiler.disable  # which has no types of its own
    if "torch._dynamo" in sys.modules:
        return disable(function)
    disabled: _Function | None = None

    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal disabled
        if disabled is None:
            if "torch._dynamo" not in sys.modules:
                return function(*args, **kwargs)
            disabled = disable(function)
        return disabled(*args, **kwargs)

    functools.update_wrapper(call, function)
    # A compiled caller stops before a function with this attribute instead of looking into it, and calls it.
    call._torchdynamo_disable = True  # type: ignore[attr-defined]  # functions have no such type
    try:
        _skip_frames_of(call.__code__)
    except AttributeError:  # another torch
        return disable(function)
    return cast(_Function, call)


def _skip_frames_of(code: CodeType) -> None:
    """Run a function's own frame as it is; else it would be compiled, again for each function wrapped."""
    frames: Any = torch._C._dynamo.eval_frame
    if hasattr(frames, "skip_code"):  # torch 2.4
        frames.skip_code(code)
    else:  # what torch._dynamo's own skip_code does
        action = frames._FrameAction
        frames.set_code_exec_strategy(code, frames._FrameExecStrategy(action.SKIP, action.DEFAULT))
