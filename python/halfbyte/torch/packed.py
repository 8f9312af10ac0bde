# python/halfbyte/torch/packed.py
# SPDX-License-Identifier: Apache-2.0
"""What modules over packed bytes share: the bytes are not numbers, and stay as they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from halfbyte.errors import ArgumentError

__all__ = ["PackedModule", "PackedParameter", "frozen"]


def _refuse_sum(*args: Any) -> Any:  # noqa: ARG001
    raise ArgumentError(
        "weight: packed bytes take no merged adapter: keep it beside the layer, or "
        "merge it into the dense model and quantize that again"
    )


class _Bytes(Tensor):
    """A tensor but for sums, which would not be of weights."""

    # Results are plain tensors.
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]
    __add__ = __radd__ = __iadd__ = _refuse_sum
    __sub__ = __rsub__ = __isub__ = _refuse_sum

    def clone(self, *args: Any, **kwargs: Any) -> Tensor:
        return super().clone(*args, **kwargs).as_subclass(_Bytes)

    def detach(self) -> Tensor:  # a parameter of it needs the same type
        return super().detach().as_subclass(_Bytes)


class PackedParameter(nn.Parameter):
    """Packed bytes as a parameter: no sum takes their place.

    PEFT merges an adapter by adding to ``weight.data``, or to a copy that it assigns.
    Torch would speak of shapes, or, where a weight is a byte, let it happen.
    """

    # Parameter's ways to copy and to pickle make a parameter of `data`.

    def __deepcopy__(self, memo: dict[int, Any]) -> PackedParameter:
        """Copy the bytes."""
        if id(self) not in memo:
            memo[id(self)] = type(self)(self._plain().clone(), self.requires_grad)
        copied: PackedParameter = memo[id(self)]
        return copied

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickle as a parameter of the bytes."""
        return nn.Parameter(self._plain(), self.requires_grad).__reduce_ex__(protocol)

    def _plain(self) -> Tensor:
        found: Tensor = Tensor.data.__get__(self)  # type: ignore[attr-defined]
        return found

    @property
    def data(self) -> Tensor:
        """The bytes."""
        return self._plain().as_subclass(_Bytes)

    @data.setter
    def data(self, bytes: Tensor) -> None:
        if bytes.data_ptr() != self.data_ptr():
            _refuse_sum()


def frozen(tensor: Tensor) -> nn.Parameter:
    """`tensor` as a parameter that is not trained."""
    return nn.Parameter(tensor.detach(), requires_grad=False)


class PackedModule(nn.Module):
    """Keeps its tensors' types, whatever the model is cast to, and stays on the CPU."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        def moved(tensor: Tensor) -> Tensor:
            to = fn(tensor)
            if to.device.type not in ("cpu", "meta"):
                raise ArgumentError(
                    f"device: {type(self).__name__} computes on the CPU, got "
                    f"{to.device}: keep the model there"
                )
            return to if to.dtype == tensor.dtype else tensor.to(to.device)

        before = self._addresses()
        done = super()._apply(moved, recurse)  # type: ignore[no-untyped-call]
        if self._addresses() != before:
            self._changed()
        return done

    def _addresses(self) -> list[int]:
        return [tensor.data_ptr() for tensor in self.parameters(recurse=False)]

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self._changed()

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take what `pickle` or `copy` kept."""
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._changed()

    def _changed(self) -> None:
        """Forget what was derived of tensors that may have moved or changed."""
