# python/halfbyte/qat/calibrate.py
# SPDX-License-Identifier: Apache-2.0
"""Steps of activations from what a model sees."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from halfbyte.errors import ArgumentError, NumericalError
from halfbyte.qat.fake import fake_quant
from halfbyte.qat.gemma import hidden_states, texts
from halfbyte.qat.modules import FakeQuantLinear

__all__ = ["calibrate"]

_FRACTIONS = tuple(0.07 ** (i / 7) for i in range(8))  # 1 to 0.07
_SMALLEST = 1e-20
_SITES = ("input_log_step", "output_log_step")

_Site = tuple[FakeQuantLinear, str]


@torch.no_grad()
def calibrate(model: Any, batches: Iterable[Tensor]) -> int:
    """Set the steps of activations to those of least squared error.

    Eight multiples of the step that reaches the largest value are tried. Matrices are
    on their grids meanwhile, activations are not rounded.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        Prepared for a scheme with static activations.
    batches : iterable of int tensors, shape (B, T)
        Tokens, 24 thousand or so; the model runs over them twice.

    Returns
    -------
    int
        The number of steps that were set.

    Raises
    ------
    ArgumentError, DTypeError, ShapeError
        If there is nothing to set, or no tokens.
    NumericalError
        If an activation is not finite.
    """
    layers = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, FakeQuantLinear) and module.static
    }
    tokens = [batch for batch in batches if texts(batch, "batches").numel()]
    if not layers or not tokens:
        what = "tokens" if layers else "layers with static activations"
        raise ArgumentError(f"calibrate: expected {what}, got none")
    for layer in layers.values():
        layer.calibrated = False
    sites = [(layer, site) for layer in layers.values() for site in _SITES]
    peaks = dict.fromkeys(sites, torch.zeros(()))
    _watch(model, layers, tokens, lambda site, x: _note_peak(peaks, site, x))
    errors: dict[_Site, Tensor] = {}
    _watch(model, layers, tokens, lambda site, x: _note_errors(errors, peaks, site, x))
    for name, layer in layers.items():
        for site in _SITES:
            _set(name, layer, site, peaks[layer, site], errors[layer, site])
        layer.calibrated = True
    return len(sites)


def _watch(
    model: Any,
    layers: dict[str, FakeQuantLinear],
    batches: Iterable[Tensor],
    note: Callable[[_Site, Tensor], None],
) -> None:
    def hook(layer: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
        assert isinstance(layer, FakeQuantLinear)
        note((layer, _SITES[0]), args[0])
        note((layer, _SITES[1]), out)

    handles = [layer.register_forward_hook(hook) for layer in layers.values()]
    device = next(iter(layers.values())).weight.device
    try:
        for batch in batches:
            hidden_states(model, batch.to(device))
    finally:
        for handle in handles:
            handle.remove()


def _note_peak(peaks: dict[_Site, Tensor], site: _Site, x: Tensor) -> None:
    peaks[site] = torch.maximum(peaks[site].to(x.device), x.abs().max().float())


def _note_errors(
    errors: dict[_Site, Tensor], peaks: dict[_Site, Tensor], site: _Site, x: Tensor
) -> None:
    wide, found = x.float(), []
    for fraction in _FRACTIONS:
        log_step = _step(peaks[site], fraction).log()
        wrong = fake_quant(wide, log_step, -128, 127) - wide
        found.append(wrong.square().sum(dtype=torch.float64))
    errors[site] = errors.get(site, 0.0) + torch.stack(found)


def _step(peak: Tensor, fraction: float) -> Tensor:
    # What is always 0 stays so with any step.
    return (peak * fraction / 127).clamp_min(_SMALLEST)


def _set(
    name: str, layer: FakeQuantLinear, site: str, peak: Tensor, errors: Tensor
) -> None:
    if not bool(torch.isfinite(peak)):
        raise NumericalError(f"{name}: expected finite activations, got {float(peak)}")
    parameter: nn.Parameter = getattr(layer, site)
    parameter.copy_(_step(peak, _FRACTIONS[int(errors.argmin())]).log())
