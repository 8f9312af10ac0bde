# python/halfbyte/qat/prepare.py
# SPDX-License-Identifier: Apache-2.0
"""A model's matrices swapped for layers that train on a grid."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from halfbyte._arguments import one_of
from halfbyte.errors import ArgumentError, ModelError, UnsupportedError
from halfbyte.qat.calibrate import calibrate
from halfbyte.qat.gemma import text_model
from halfbyte.qat.modules import (
    FakeQuantEmbedding,
    FakeQuantExperts,
    FakeQuantLinear,
    FakeQuantModule,
)
from halfbyte.qat.schemes import Grid, Scheme, named

__all__ = ["Preparation", "fake_modules", "prepare", "prepared", "ptq"]

_TABLES = {"embed_tokens": "embeddings", "embed_tokens_per_layer": "per_layer"}


@dataclass(frozen=True)
class Preparation:
    """What `prepare` did to a model."""

    model: str
    """Its class."""
    scheme: Scheme
    swapped: dict[str, Grid]
    """Names of layers."""
    skipped: dict[str, str]
    """Names of layers, and why."""
    weights: int
    """Of the matrices swapped; a tied one counts once."""

    def __str__(self) -> str:
        """Render a small table."""
        lines = [f"{self.model} for {self.scheme.name}: {self.weights:,} weights"]
        for grid, count in Counter(map(str, self.swapped.values())).most_common():
            lines.append(f"  {count:4} of {grid}")
        for name, why in self.skipped.items():
            lines.append(f"  {name} stays: {why}")
        return "\n".join(lines)


def fake_modules(model: nn.Module) -> Iterator[tuple[str, FakeQuantModule]]:
    """Iterate over the layers that `prepare` put in, by name."""
    for name, module in model.named_modules():
        if isinstance(module, FakeQuantModule):
            yield name, module


def prepared(model: Any) -> Preparation:
    """Return what `prepare` said of `model`."""
    found: Preparation | None = getattr(model, "halfbyte_qat", None)
    if found is None:
        raise ArgumentError("model: expected a prepared one: call halfbyte.qat.prepare")
    return found


def prepare(
    model: Any,
    scheme: str | Scheme = "q4_0",
    *,
    embeddings: bool = False,
    per_layer: bool = False,
    step: str = "search",
) -> Preparation:
    """Swap the matrices of a model's text part, in place.

    All parameters but those of the layers put in are frozen.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        A Gemma 3 or Gemma 4 model with a head, in the type to compute in: float32 or
        bfloat16. Weights to train are kept in float32.
    scheme : {"q4_0", "mobile"} or Scheme
    embeddings : bool
        Whether the embedding and the head, tied or not, are swapped too.
    per_layer : bool
        Whether the table of per-layer embeddings is.
    step : {"search", "ggml"}
        Where steps begin: the least squared error, or the largest weight over -8, as
        ggml quantizes to Q4_0.

    Returns
    -------
    Preparation
        Also kept as ``model.halfbyte_qat``.

    Raises
    ------
    UnsupportedError
        If the model is of another kind, or the scheme has no form for a part of it.
    ArgumentError, DTypeError
        If the model was prepared before, or an argument does not fit.
    ModelError
        If the rows of a matrix are no whole groups, or all matrices are packed.
    """
    prefix, text = text_model(model)
    if hasattr(model, "halfbyte_qat"):
        raise ArgumentError("model: it was prepared before: build it anew")
    chosen = named(scheme, text.config)
    _check_step(step, chosen)
    tables = {"embeddings": embeddings, "per_layer": per_layer}
    swaps, skipped = _sorted_out(model, prefix, text, tables, chosen)
    model.requires_grad_(False)
    for name, grid in swaps.items():
        new = _fake(model.get_submodule(name), grid, chosen, name, step)
        model.set_submodule(name, new)
    if embeddings and _is_tied(model):
        model.lm_head.tie(text.embed_tokens)
    matrices = {m.matrix(n) for _, m in fake_modules(model) for n in m.matrices}
    count = sum(matrix.numel() for matrix in matrices)
    report = Preparation(type(model).__name__, chosen, swaps, skipped, count)
    model.halfbyte_qat = report
    model.save_pretrained = _save_pretrained
    return report


def _save_pretrained(*args: Any, **kwargs: Any) -> None:
    del args, kwargs
    raise UnsupportedError(
        "save_pretrained: the model's configuration says nothing of grids and steps, so "
        "what it writes would be another model - halfbyte.qat.export writes it, and "
        "torch.save its state_dict, to go on later"
    )


def ptq(
    model: Any,
    scheme: str | Scheme = "q4_0",
    batches: Iterable[Tensor] = (),
    **options: Any,
) -> Preparation:
    """Quantize without training: `prepare`, and `calibrate` if the scheme asks for it.

    Parameters
    ----------
    model, scheme
        As of `prepare`.
    batches : iterable of int tensors, shape (B, T)
        Tokens to calibrate with, if the scheme rounds activations.
    **options
        Of `prepare`.

    Returns
    -------
    Preparation

    Raises
    ------
    UnsupportedError, ArgumentError, ModelError, NumericalError
        As by `prepare` and `calibrate`.
    """
    report = prepare(model, scheme, **options)
    if report.scheme.activations:
        calibrate(model, batches)
    return report


def _check_step(step: str, scheme: Scheme) -> None:
    if one_of(step, "step", ("search", "ggml")) == "ggml" and scheme.name != "q4_0":
        raise ArgumentError(f"step: 'ggml' is a rule of Q4_0, not of {scheme.name}")


def _sorted_out(
    model: Any, prefix: str, text: nn.Module, tables: dict[str, bool], scheme: Scheme
) -> tuple[dict[str, Grid], dict[str, str]]:
    """Return what is to be swapped and for what, and what stays and why."""
    swaps: dict[str, Grid] = {}
    skipped: dict[str, str] = {}
    for name, module in _candidates(model, prefix, text, tables):
        why = _reason_to_skip(name, module, scheme)
        if why is None:
            swaps[name] = _fitting(name, module, scheme)
        else:
            skipped[name] = why
    if swaps.keys() <= {f"{prefix}.{table}" for table in _TABLES}:
        raise ModelError(
            f"model: expected torch.nn.Linear layers in {prefix}, found none: load it with "
            "its weights as floats"
        )
    head, table = (swaps.get(name) for name in ("lm_head", f"{prefix}.embed_tokens"))
    if _is_tied(model) and head != table:
        raise ArgumentError(
            f"scheme: expected the head to be as the embedding it is tied to, {table}, "
            f"got {head}"
        )
    return swaps, skipped


def _candidates(
    model: Any, prefix: str, text: nn.Module, tables: dict[str, bool]
) -> Iterator[tuple[str, nn.Module]]:
    for name, module in text.named_modules(prefix=prefix):
        last = name.rpartition(".")[2]
        if isinstance(module, nn.Embedding):
            if tables.get(_TABLES.get(last, ""), False):
                yield name, module
        elif type(module) is nn.Linear or _are_experts(module):
            yield name, module
    if tables["embeddings"] and type(model.lm_head) is nn.Linear:
        yield "lm_head", model.lm_head


def _are_experts(module: nn.Module) -> bool:
    own = dict(module.named_parameters(recurse=False))
    stacked = [name for name, value in own.items() if value.dim() == 3]
    return set(FakeQuantExperts.matrices) <= set(stacked)


def _reason_to_skip(name: str, module: nn.Module, scheme: Scheme) -> str | None:
    if ".router." in name:
        return "it chooses experts"
    if name.endswith(scheme.skip):
        return "the scheme leaves it"
    if scheme.packed and _are_experts(module):
        raise UnsupportedError(f"{name}: the mobile schema has no form for experts")
    return None


def _fitting(name: str, module: nn.Module, scheme: Scheme) -> Grid:
    grid = scheme.grid_of(name)
    names = FakeQuantExperts.matrices if _are_experts(module) else ("weight",)
    for matrix in names:
        width = module.get_parameter(matrix).shape[-1]
        if grid.group is not None and width % grid.group:
            raise ModelError(
                f"{name}.{matrix}: expected rows of a multiple of {grid.group} weights, "
                f"got {width}"
            )
    return grid


def _fake(
    module: nn.Module, grid: Grid, scheme: Scheme, name: str, step: str
) -> FakeQuantModule:
    if isinstance(module, nn.Embedding):
        packed = scheme.packed
        return FakeQuantEmbedding(module, grid, packed_factor=packed, step=step)
    if isinstance(module, nn.Linear):
        # The schema's head has steps of 0: its input is not rounded, nor are logits.
        static = scheme.activations and name != "lm_head"
        return FakeQuantLinear(module, grid, static=static, step=step)
    return FakeQuantExperts(module, grid, step=step)


def _is_tied(model: Any) -> bool:
    return bool(model.config.get_text_config().tie_word_embeddings)
