# python/halfbyte/transformers/quantizer.py
# Layers are exchanged while the model is a skeleton without memory, and each dense
# tensor is packed as it is read: the dense model never exists.
# SPDX-License-Identifier: Apache-2.0
"""The quantizer that ``from_pretrained`` runs for a `HalfbyteConfig`."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers.core_model_loading import ConversionOps, WeightRenaming
from transformers.quantizers.auto import (
    AUTO_QUANTIZATION_CONFIG_MAPPING,
    AUTO_QUANTIZER_MAPPING,
    register_quantization_config,
    register_quantizer,
)
from transformers.quantizers.base import HfQuantizer

from halfbyte.errors import ArgumentError, DTypeError, UnsupportedError
from halfbyte.formats import format_info
from halfbyte.torch import QuantEmbedding, QuantLinear
from halfbyte.torch.experts import QuantExperts
from halfbyte.torch.fuse import fuse, unfuse
from halfbyte.torch.modules import repack
from halfbyte.transformers import attention, swap
from halfbyte.transformers.config import METHOD, HalfbyteConfig

__all__ = ["HalfbyteQuantizer", "register"]


def register() -> None:
    """Make the config and its quantizer known to Transformers. Once is enough."""
    if METHOD not in AUTO_QUANTIZATION_CONFIG_MAPPING:
        register_quantization_config(METHOD)(HalfbyteConfig)
    if METHOD not in AUTO_QUANTIZER_MAPPING:
        register_quantizer(METHOD)(HalfbyteQuantizer)


# Words for wherever there is room: accelerate would spread the model over devices.
_ANYWHERE = ("auto", "balanced", "balanced_low_0", "sequential")


def check_device_map(device_map: Any) -> None:
    """Refuse to put any part of a model elsewhere than in CPU memory.

    Parameters
    ----------
    device_map : dict, str or None
        Names of modules to devices; or ``"auto"`` and its like, which are the CPU.

    Raises
    ------
    ArgumentError
        If one of them is not the CPU.
    """
    if device_map in _ANYWHERE:
        return
    given = {"": device_map} if isinstance(device_map, str) else device_map or {}
    for device in given.values():
        if isinstance(device, str | torch.device) and str(device) == "cpu":
            continue
        raise ArgumentError(
            f"device_map: halfbyte computes on the CPU, got {str(device)!r}: "
            'pass device_map="cpu", or leave it out'
        )


def on_the_cpu(device_map: Any) -> dict[str, Any]:
    """The map that `check_device_map` has let through, in full."""
    return device_map if isinstance(device_map, dict) else {"": "cpu"}


_LOAD_WHOLE = "load a whole one, with the class that saved it"
_LEAVE_DENSE = (
    "load a whole one, or leave layers that it does not have dense: "
    "HalfbyteConfig(modules_to_not_convert=[...])"
)


class Pack(ConversionOps):
    """Packs a dense tensor as it is read."""

    @torch.no_grad()
    def convert(
        self,
        input_dict: dict[str, Any],
        *,
        full_layer_name: str,
        model: nn.Module,
        **kwargs: Any,  # noqa: ARG002
    ) -> dict[str, Tensor]:
        """Pack one tensor.

        Parameters
        ----------
        input_dict : dict
            The tensor, or a list of it, under some name.
        full_layer_name : str
            Parameter that it is for.
        model : torch.nn.Module
            Whose layers are swapped.

        Returns
        -------
        dict of str to tensor
            The parameters that it becomes.
        """
        (value,) = input_dict.values()
        dense = value[0] if isinstance(value, list) else value
        name, _, parameter = full_layer_name.rpartition(".")
        module = model.get_submodule(name)
        packed, scale = swap.pack(dense, swap.format_of(module, parameter))
        swap.let_go(dense)
        made: dict[str, Tensor] = {}
        made[full_layer_name] = nn.Parameter(packed, requires_grad=False)
        if scale is not None:
            rows = scale.reshape(-1, 1)
            made[f"{full_layer_name}_scale"] = nn.Parameter(rows, requires_grad=False)
        return made


class HalfbyteQuantizer(HfQuantizer):
    """Packs dense checkpoints while they are loaded, and loads what it saved."""

    quantization_config: HalfbyteConfig
    requires_calibration = False
    _dense: dict[str, nn.Module]
    _skeleton: swap.Shapes  # of what took their place
    _taken: dict[str, nn.Module]  # what stood between them
    _renamings: list[WeightRenaming]

    def validate_environment(self, *args: Any, **kwargs: Any) -> None:
        """Refuse devices other than the CPU, and releases that cannot pack.

        Raises
        ------
        ArgumentError
            If a part of the model is to be elsewhere.
        UnsupportedError
            If this Transformers cannot pack a checkpoint as it reads it.
        """
        if not (self.pre_quantized or hasattr(HfQuantizer, "get_new_dtype")):
            # They cast a tensor to the type of what it is packed into, and then pack.
            raise UnsupportedError(
                f"transformers {transformers.__version__} cannot pack a checkpoint as it "
                "reads it: upgrade it, or use halfbyte.accelerate(model, quantize=...)"
            )
        check_device_map(kwargs.get("device_map", args[0] if args else None))

    def update_dtype(self, dtype: Any) -> Any:
        """As it is.

        Raises
        ------
        DTypeError
            If no layer computes in it.
        """
        asked = dtype.values() if isinstance(dtype, dict) else [dtype]
        if torch.float64 in asked:
            raise DTypeError(
                "dtype: expected float32, float16 or bfloat16, got torch.float64"
            )
        return dtype

    def update_device_map(self, device_map: dict[str, Any] | None) -> dict[str, Any]:
        """Everything on the CPU."""
        return on_the_cpu(device_map)

    def update_attn_implementation(self, config: Any) -> Any:
        """Attend by halfbyte, if all else is to be fused and nothing was asked for."""
        if self.quantization_config.fuse and config._attn_implementation is None:
            config._attn_implementation = attention.NAME
        return config

    def param_needs_quantization(
        self,
        model: nn.Module,
        param_name: str,
        **kwargs: Any,  # noqa: ARG002
    ) -> bool:
        """Whether a tensor of the checkpoint is dense and its layer packed."""
        if self.pre_quantized:
            return False
        name, _, parameter = param_name.rpartition(".")
        module = model.get_submodule(name)
        return isinstance(
            module, QuantLinear | QuantEmbedding | QuantExperts
        ) and parameter in (
            "weight",
            "embedding_quantized",
            "gate_up_proj",
            "down_proj",
        )

    def get_quantize_ops(self) -> ConversionOps:
        """How such a tensor is packed."""
        return Pack()

    def _process_model_before_weight_loading(
        self,
        model: Any,
        **kwargs: Any,  # noqa: ARG002
    ) -> None:
        config = self.quantization_config
        if self.pre_quantized:
            chosen, skipped = swap.saved_plan(model, config)
        else:
            chosen, skipped = swap.plan(model, config, self._left_alone(model))
        report, self._dense = swap.apply(model, chosen, skipped, config)
        config.module_formats = chosen  # a saved checkpoint is loaded by it
        model.halfbyte_report = report
        self._skeleton = swap.shapes(self._packed(model))

    def _packed(self, model: Any) -> dict[str, nn.Module]:
        return {name: model.get_submodule(name) for name in self._dense}

    def _left_alone(self, model: Any) -> list[str]:
        names: list[str] = self.get_modules_to_not_convert(
            model,
            self.quantization_config.modules_to_not_convert,
            model._keep_in_fp32_modules,
            add_default_skips=True,
        )
        return names

    def get_weight_conversions(self) -> list[Any]:
        """Send the dense tables of a checkpoint to where packed ones are kept."""
        self._renamings = []
        if not self.pre_quantized:
            leaves = {
                name.rpartition(".")[2]
                for name, module in self._dense.items()
                if isinstance(module, nn.Embedding)
            }
            self._renamings = [
                WeightRenaming(rf"{leaf}\.weight$", f"{leaf}.embedding_quantized")
                for leaf in sorted(leaves)
            ]
        return [*super().get_weight_conversions(), *self._renamings]

    def _process_model_after_weight_loading(
        self,
        model: Any,
        **kwargs: Any,  # noqa: ARG002
    ) -> Any:
        # Packed tables are saved under their own name, not back under the dense one.
        ours = {id(renaming) for renaming in self._renamings}
        model._weight_conversions = [
            c for c in model._weight_conversions if id(c) not in ours
        ]
        named = self._packed(model)
        swap.check_shapes(named, self._skeleton)
        swap.check_loaded(
            model, named, _LOAD_WHOLE if self.pre_quantized else _LEAVE_DENSE
        )
        layers = list(named.values())
        for layer in layers:
            layer.requires_grad_(False)
        config = self.quantization_config
        # Layers that round nothing read the weights as they are.
        idle = config.repack == "auto" and config.activations == "f32"
        linears = [layer for layer in layers if isinstance(layer, QuantLinear)]
        repack(linears, "never" if idle else config.repack)
        self._taken = fuse(model) if config.fuse else {}
        return model

    def _dequantize(self, model: Any, dtype: Any = None) -> Any:
        if isinstance(dtype, str):  # as save_pretrained leaves it in the config
            dtype = getattr(torch, dtype)
        unfuse(model, self._taken)
        for name, dense in self._dense.items():
            swap.fill(dense, model.get_submodule(name), dtype)
            model.set_submodule(name, dense)
        model.all_tied_weights_keys = model._tied_weights_keys = {
            target: source.replace(".embedding_quantized", ".weight")
            for target, source in model.all_tied_weights_keys.items()
        }
        model.tie_weights(recompute_mapping=False)
        return model

    def is_serializable(self, safe_serialization: bool | None = None) -> bool:  # noqa: ARG002
        """Packed bytes are parameters: ``save_pretrained`` writes them."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Adapters train over packed weights, which have no gradient themselves."""
        return True

    @property
    def is_compileable(self) -> bool:
        """The operators can be traced."""
        return True

    @property
    def quantized_element_size(self) -> float:
        """Bytes of a packed weight."""
        info = format_info(self.quantization_config.format)
        return info.block_bytes / info.block_len
