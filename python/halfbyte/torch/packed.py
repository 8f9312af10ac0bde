# python/halfbyte/torch/packed.py
# SPDX-License-Identifier: Apache-2.0
"""What modules over packed bytes share: the bytes are not numbers, and stay as they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from halfbyte.errors import ArgumentError
from halfbyte.torch._dispatch import BYTES

__all__ = ["PackedModule", "PackedParameter", "frozen"]


class PackedParameter(nn.Parameter):
    """Packed bytes as a parameter: no sum takes their place.

    PEFT merges an adapter by assigning to ``weight.data``. Where a weight is a byte, the
    shapes fit, and what came out would be no weights.
    """

    @property
    def data(self) -> Tensor:
        """The bytes."""
        return Tensor.data.__get__(self)  # type: ignore[attr-defined, no-any-return]

    @data.setter
    def data(self, bytes: Tensor) -> None:
        if bytes.data_ptr() != self.data_ptr():
            raise ArgumentError(
                "weight: packed bytes take no merged adapter: keep it beside the layer, "
                "or merge it into a torch.nn.Linear made of dequantize()"
            )


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

    def _formats(self) -> str:
        """What the bytes mean, in words."""
        raise NotImplementedError

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        # Beside the version that torch notes there: no tensor, which safetensors and
        # Transformers would take for one of the model's.
        noted = getattr(destination, "_metadata", {}).get(prefix[:-1])
        if noted is not None:
            noted["format"] = self._formats()

    def _load_from_state_dict(
        self,
        state: dict[str, Any],
        prefix: str,
        noted: dict[str, Any],
        *args: Any,
    ) -> None:
        # Q4_0 and W4G32, F16 and BF16 have as many bytes a row, and other numbers.
        found = noted.get("format", self._formats())
        if found != self._formats():
            args[-1].append(
                f"{prefix.rstrip('.')}: expected {self._formats()}, found {found}: "
                "load it into a layer of that format"
            )
            return
        for name, held in self._parameters.items():
            given = state.get(prefix + name)
            if held is None or held.dtype != torch.uint8:
                continue
            if isinstance(given, Tensor) and given.dtype not in BYTES:
                errors = args[-1]
                errors.append(
                    f"{prefix}{name}: expected packed bytes, got {given.dtype}"
                )
        super()._load_from_state_dict(state, prefix, noted, *args)
        self._changed()

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take what `pickle` or `copy` kept."""
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._changed()

    def _changed(self) -> None:
        """Forget what was derived of tensors that may have moved or changed."""
