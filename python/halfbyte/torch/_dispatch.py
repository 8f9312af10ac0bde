# python/halfbyte/torch/_dispatch.py
# SPDX-License-Identifier: Apache-2.0
"""What the operators share: their registration, and checks of tensors."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from halfbyte import targets
from halfbyte.errors import ArgumentError, DTypeError, ShapeError

__all__ = [
    "BYTES",
    "TYPES",
    "aligned",
    "as_vector",
    "at_once",
    "check_filled",
    "check_float",
    "check_indices",
    "check_optional_tensors",
    "check_tensors",
    "is_watched",
    "num_threads",
    "register",
    "threads",
]

BYTES = (torch.uint8, torch.int8)  # that packed weights come as
TYPES = {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16"}
_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
_FLOATS = "expected float32, float16 or bfloat16"

# Registrations last as long as this object.
_library = torch.library.Library("halfbyte", "DEF")


def register(
    schema: str,
    kernel: Callable[..., Any],
    fake: Callable[..., Any],
    context: Callable[..., None] | None = None,
    backward: Callable[..., Any] | None = None,
) -> None:
    """Define the operator of `schema`, which runs `kernel` on CPU tensors."""
    name = schema.partition("(")[0]
    _library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    _library.impl(name, kernel, "CPU")
    # Of every other backend; torch's own words would be of keys and fallbacks.
    _library.impl(name, _refusal(name), "CompositeExplicitAutograd")
    torch.library.register_fake(
        f"halfbyte::{name}", _of_tensors_alike(name, fake), lib=_library
    )
    if backward is not None:
        torch.library.register_autograd(
            f"halfbyte::{name}", backward, setup_context=context, lib=_library
        )


def _refusal(name: str) -> Callable[..., Any]:
    def refuse(*args: Any) -> Any:
        tensors = [arg for arg in args if isinstance(arg, Tensor)]
        dense = all(tensor.layout is torch.strided for tensor in tensors)
        found = {str(t.device if dense else t.layout) for t in tensors}
        raise ArgumentError(
            f"halfbyte.torch.{name}: expected dense tensors in CPU memory, got "
            f"{', '.join(sorted(found))}: call .{'cpu' if dense else 'to_dense'}()"
        )

    return refuse


def _of_tensors_alike(name: str, fake: Callable[..., Any]) -> Callable[..., Any]:
    """`fake`, which torch also calls where the first tensor has memory and others not.

    What it makes then has memory too, with anything in it.
    """

    def checked(*args: Any) -> Any:
        if args[0].device.type != "meta":
            schema = getattr(torch.ops.halfbyte, name).default._schema
            names = (argument.name for argument in schema.arguments)
            check_filled(**dict(zip(names, args, strict=False)))
        return fake(*args)

    return checked


def num_threads() -> int:
    """What halfbyte was told to use, else what torch uses."""
    return targets.num_threads_or(torch.get_num_threads())


def threads() -> AbstractContextManager[None]:
    """Use `num_threads`, as it is now, in all that is called inside a ``with`` block."""
    return targets.threads(num_threads())


def check_tensors(**tensors: object) -> None:
    """Demand tensors, which the dispatcher does in many lines.

    What stands for one where calls are traced has that attribute too.
    """
    for name, x in tensors.items():
        if not (isinstance(x, Tensor) or hasattr(x, "__torch_function__")):
            raise DTypeError(f"{name}: expected a tensor, got {type(x).__name__}")


def check_optional_tensors(**tensors: object) -> None:
    """Demand tensors, or None."""
    check_tensors(**{name: x for name, x in tensors.items() if x is not None})


def check_float(x: Tensor, name: str) -> None:
    """Demand a type that operators compute with, and a dimension.

    The device is checked for fake tensors: others would not have come here.
    """
    if x.dtype not in TYPES:
        raise DTypeError(f"{name}: {_FLOATS}, got {x.dtype}: call .float()")
    if x.dim() == 0:
        raise ShapeError(f"{name}: expected at least one dimension, got shape ()")
    if not x.is_cpu and x.device.type not in ("cpu", "meta"):
        raise ArgumentError(
            f"{name}: expected a tensor in CPU memory, got {x.device}: call .cpu()"
        )


def check_filled(**tensors: object) -> None:
    """Refuse tensors of a skeleton; what is no tensor is no matter."""
    for name, x in tensors.items():
        if isinstance(x, Tensor) and x.device.type == "meta":
            raise ArgumentError(
                f"{name}: expected a tensor in CPU memory, got one on meta, which has no "
                "memory yet: load a state dict with assign=True"
            )


def check_indices(ids: Tensor, name: str) -> None:
    """Demand integers."""
    if ids.dtype not in _INTEGERS:
        raise DTypeError(f"{name}: expected integers, got {ids.dtype}")


def check_vector(x: Tensor, name: str, size: int) -> None:
    """Demand a float vector of `size` elements."""
    if x.dim() != 1 or x.shape[0] != size:
        raise ShapeError(f"{name}: expected shape ({size},), got {tuple(x.shape)}")
    check_float(x, name)


def as_vector(x: Tensor, name: str, size: int) -> Tensor:
    """`x` as a contiguous float32 vector of `size` elements: itself if it is that."""
    check_vector(x, name, size)
    if x.is_meta:  # asked of every bias, for every token
        check_filled(**{name: x})
    return aligned(x.detach().float().contiguous())


def aligned(x: Tensor) -> Tensor:
    """`x`, or a copy: a file may have put it where no element of its type begins."""
    return x.clone() if x.data_ptr() % x.element_size() else x


def is_watched() -> bool:
    """Whether someone traces, watches or transforms what torch does (vmap, jvp)."""
    return bool(
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._get_tracing_state()
        or torch._C._functorch.peek_interpreter_stack()
        or torch.autograd.forward_ad._current_level >= 0
    )


def at_once(x: Tensor, weight: Tensor | None) -> bool:
    """Whether the dispatcher would go straight to the kernel, and can be left out.

    It costs more than a small product. Not where someone traces, watches or transforms
    (vmap), where a gradient is wanted, or where `x` is not memory to be read as it is.
    """
    if is_watched():
        return False
    if type(x) is not Tensor or not x.is_cpu or x.layout is not torch.strided:
        return False
    if x.is_neg():
        return False
    wants_grad = x.requires_grad or (weight is not None and weight.requires_grad)
    return not (wants_grad and torch.is_grad_enabled())
