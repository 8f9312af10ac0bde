# python/halfbyte/transformers/takeover.py
# SPDX-License-Identifier: Apache-2.0
"""Official checkpoints as they are: their own quantizers, computing on packed bytes."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from torch import nn
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING

from halfbyte.errors import ArgumentError, UnsupportedError
from halfbyte.torch.accelerate import accelerate
from halfbyte.torch.foreign import is_packed
from halfbyte.transformers import swap
from halfbyte.transformers.quantizer import check_device_map, on_the_cpu

__all__ = ["disable", "enable"]

_METHODS = ("gemma", "compressed-tensors")

_originals: dict[str, Any] = {}


class _Packed:
    """What both quantizers do differently; goes before the class it is about."""

    def validate_environment(self, *args: Any, **kwargs: Any) -> None:
        """Refuse devices other than the CPU."""
        check_device_map(kwargs.get("device_map", args[0] if args else None))
        super().validate_environment(*args, **kwargs)  # type: ignore[misc]

    def update_device_map(self, device_map: Any) -> Any:
        """Everything on the CPU."""
        return on_the_cpu(device_map)

    def _process_model_before_weight_loading(self, model: Any, **kwargs: Any) -> None:
        super()._process_model_before_weight_loading(model, **kwargs)  # type: ignore[misc]
        for layer in _packed_layers(model).values():
            swap.as_it_comes(layer)

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        layers = _packed_layers(model)
        self._fill(layers)
        # Before the other library can make something of memory that was not filled.
        swap.check_loaded(model, layers, "fetch it again, and load it whole")
        super()._process_model_after_weight_loading(model, **kwargs)  # type: ignore[misc]
        config: Any = self.quantization_config  # type: ignore[attr-defined]
        # Whoever asks for dense weights gets them.
        if not getattr(config, "dequantize", False):
            accelerate(model, keep=False)
        return model

    def _fill(self, layers: Mapping[str, nn.Module]) -> None:
        """Fill what a checkpoint may lack."""

    def is_serializable(self, safe_serialization: bool | None = None) -> bool:  # noqa: ARG002
        """Not in the form that the config names: the checkpoint is there to be copied."""
        return False


def _packed_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The layers that `accelerate` may swap, by name."""
    return {name: m for name, m in model.named_modules() if is_packed(m)}


class _Mobile(_Packed):
    def _fill(self, layers: Mapping[str, nn.Module]) -> None:
        """A layer without steps was not calibrated, which is a step of 0.

        So transformers says of its own layers, but gives them memory as it finds it.
        """
        for layer in layers.values():
            for side in ("input", "output"):
                step = getattr(layer, f"{side}_activation_scale", None)
                if step is not None and not hasattr(step, "_is_hf_initialized"):
                    step.zero_()
                    step._is_hf_initialized = True

    def param_needs_quantization(
        self, model: Any, param_name: str, **kwargs: Any
    ) -> bool:
        """Whether a tensor may have another shape than its parameter.

        Tables have one scale a row, or one for each part of it.
        """
        return param_name.endswith(".embedding_scale") or bool(
            super().param_needs_quantization(  # type: ignore[misc]
                model, param_name, **kwargs
            )
        )


_MIXINS = {"gemma": _Mobile, "compressed-tensors": _Packed}


@functools.cache
def _takeover(method: str, original: type) -> type:
    name = f"Halfbyte{original.__name__}"
    return type(name, (_MIXINS[method], original), {"__module__": __name__})


def __getattr__(name: str) -> type:
    """Find a class that `enable` makes where a pickle of its model looks for it."""
    for method in _MIXINS:
        original = _originals.get(method) or AUTO_QUANTIZER_MAPPING.get(method)
        if original is not None and name == f"Halfbyte{original.__name__}":
            return _takeover(method, original)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def enable(*methods: str) -> None:
    """Let ``from_pretrained`` keep the packed bytes of official checkpoints.

    Parameters
    ----------
    *methods : {"gemma", "compressed-tensors"}
        The ``quant_method`` of a checkpoint; both by default. A method that is enabled
        already stays so.

    Raises
    ------
    ArgumentError
        If a method is none of these.
    UnsupportedError
        If the Transformers that is installed does not have it.
    """
    for method in _known(methods):
        if method in _originals:
            continue
        original = AUTO_QUANTIZER_MAPPING.get(method)
        if original is None:
            raise UnsupportedError(
                f"transformers: expected a quantizer for {method!r}, found none: "
                "run pip install --upgrade transformers"
            )
        AUTO_QUANTIZER_MAPPING[method] = _takeover(method, original)
        _originals[method] = original


def disable(*methods: str) -> None:
    """Undo `enable`; models that are loaded stay as they are.

    Parameters
    ----------
    *methods : {"gemma", "compressed-tensors"}
        Both by default.

    Raises
    ------
    ArgumentError
        If a method is none of these.
    """
    for method in _known(methods):
        if method in _originals:
            AUTO_QUANTIZER_MAPPING[method] = _originals.pop(method)


def _known(methods: tuple[str, ...]) -> tuple[str, ...]:
    for method in methods:
        if method not in _METHODS:
            raise ArgumentError(
                f"methods: expected some of {', '.join(_METHODS)}, got {method!r}"
            )
    return methods or _METHODS
