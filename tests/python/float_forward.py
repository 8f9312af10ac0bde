# tests/python/float_forward.py
# A second oracle: the forward pass in float64, with rounding, noise and mistakes on call.
# SPDX-License-Identifier: Apache-2.0
"""The forward pass of gemma4.md section 2 in float64, written apart from transformers.

It serves three purposes that a transformers model cannot:

* float64 gives the exact logits, so a bound of 1e-5 is not spent on the oracle's noise;
* the inputs of chosen matrices can be rounded to eight bits, or get noise of the size
  of that rounding (see `activation_noise`);
* a deliberate mistake can be asked for by name, to show that a comparison sees it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import tiny
import torch
from halfbyte import reference

F64 = npt.NDArray[np.float64]
Tensor = torch.Tensor
Prompts = list[int] | list[list[int]]
BLOCK = 32  # activations are rounded in blocks of 32 along the input dimension

# Each mistake and the part a model must have for it to matter. Two that one might expect
# are not here since a norm follows and takes any factor out again: the factor 2^-0.5 of
# the per-layer inputs and the renormalisation of the routing weights.
MISTAKES = {
    "window one short": "",
    "window one long": "",
    "no layer scalar": "gemma4",
    "no value norm": "gemma4",
    "norm convention": "",
    "exact gelu": "",
    "silu": "",
    "embedding factor in bfloat16": "odd hidden",
    "no embedding factor": "",
    "rope exponent over the rotated part": "gemma4",
    "rope on every pair": "gemma4",
    "one rope base": "",
    "rope pairs interleaved": "",
    "position off by one after the window": "",
    "other score scale": "",
    "values from normed keys": "k_eq_v",
    "first owner as source": "shared",
    "neighbour head group": "grouped",
    "ple norm over all layers": "ple",
    "ple gate normed": "ple",
    "ple without token scale": "ple",
    "no soft cap": "gemma4",
    "norm after the residual": "",
    "router without scale": "moe",
    "router without root": "moe",
    "router from normed input": "moe",
    "no expert scale": "moe",
    "gate and up swapped": "moe",
    "crossed norms": "moe",
    "no dense branch": "moe",
    "no rope scaling": "scaled",
}


@dataclass
class Rounding:
    """What happens to the inputs of matrices and to cached keys and values.

    Attributes
    ----------
    names : frozenset of str
        Weights whose input is treated.
    inputs : callable, optional
        Applied to each distinct input once, as the engine rounds it once.
    cache : callable, optional
        Applied to keys and values before attention.
    """

    names: frozenset[str] = frozenset()
    inputs: Callable[[Tensor], Tensor] | None = None
    cache: Callable[[Tensor], Tensor] | None = None


def applicable(mistake: str, cfg: Any) -> bool:
    """Tell whether a mistake can change a model's logits.

    Parameters
    ----------
    mistake : str
        One of `MISTAKES`.
    cfg : PretrainedConfig
        The model's configuration.

    Returns
    -------
    bool
        False when the model lacks the part that is wrong.
    """
    gemma4 = cfg.model_type != "gemma3_text"
    odd = not math.sqrt(cfg.hidden_size).is_integer()
    present: dict[str, bool] = {
        "": True,
        "gemma4": gemma4,
        "odd hidden": odd,
        "k_eq_v": getattr(cfg, "attention_k_eq_v", False),
        "shared": getattr(cfg, "num_kv_shared_layers", 0) > 0,
        "grouped": _grouped(cfg) if gemma4 else cfg.num_key_value_heads > 1,
        "ple": getattr(cfg, "hidden_size_per_layer_input", 0) > 0,
        "moe": getattr(cfg, "enable_moe_block", False),
        "scaled": "factor" in cfg.rope_parameters[tiny.G],
    }
    return present[MISTAKES[mistake]]


def _grouped(cfg: Any) -> bool:
    """Tell whether any layer has more than one key head.

    Parameters
    ----------
    cfg : PretrainedConfig
        The model's configuration.

    Returns
    -------
    bool
        The answer.
    """
    own = [cfg.per_layer_config[i] for i in range(cfg.num_hidden_layers)]
    return any(layer.num_key_value_heads > 1 for layer in own)


class Forward:
    """One model, ready to run.

    Parameters
    ----------
    model : PreTrainedModel
        Source of the weights and the configuration.
    dtype : torch.dtype
        Type of the arithmetic.
    mistake : str
        A deliberate mistake, or nothing.
    """

    def __init__(
        self, model: Any, dtype: torch.dtype = torch.float64, mistake: str = ""
    ) -> None:
        self.cfg = model.config
        self.dtype = dtype
        self.mistake = mistake
        self.gemma3 = self.cfg.model_type == "gemma3_text"
        self.w = {k: v.to(dtype) for k, v in tiny.weights(model).items()}
        self.w["lm_head.weight"] = model.lm_head.weight.detach().to(dtype)
        self.rounding = Rounding()
        self.seen: dict[int, tuple[Tensor, Tensor]] = {}

    def __call__(self, ids: Tensor, rounding: Rounding | None = None) -> Tensor:
        """Run whole prompts.

        Parameters
        ----------
        ids : Tensor
            (B, T) token ids.
        rounding : Rounding, optional
            Treatment of activations and cache.

        Returns
        -------
        Tensor
            (B, T, vocab) logits.
        """
        self.rounding = rounding or Rounding()
        self.seen = {}
        with torch.no_grad():
            return self._logits(ids)

    def _logits(self, ids: Tensor) -> Tensor:
        hidden = self.cfg.hidden_size
        factor = math.sqrt(hidden)
        if self.mistake == "embedding factor in bfloat16":
            factor = float(torch.tensor(factor).bfloat16())
        if self.mistake == "no embedding factor":
            factor = 1.0
        h = self.w["embed_tokens.weight"][ids] * factor
        ple = self._per_layer_inputs(ids, h)
        store: dict[str, list[tuple[Tensor, Tensor]]] = {}
        for i in range(self.cfg.num_hidden_layers):
            h = self._layer(i, h, ple[i] if ple else None, store)
        logits = self._linear(self._norm(h, "norm.weight"), "lm_head.weight")
        cap: float | None = self.cfg.final_logit_softcapping
        if cap is None or self.mistake == "no soft cap":
            return logits
        return cap * torch.tanh(logits / cap)

    def _linear(self, x: Tensor, name: str) -> Tensor:
        inputs = self.rounding.inputs
        if inputs is not None and name in self.rounding.names:
            if id(x) not in self.seen:
                self.seen[id(x)] = (x, inputs(x))
            x = self.seen[id(x)][1]
        return x @ self.w[name].T

    def _norm(self, x: Tensor, name: str | None) -> Tensor:
        y = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.cfg.rms_norm_eps)
        if name is None:
            return y
        plus_one = self.gemma3 != (self.mistake == "norm convention")
        return y * (self.w[name] + 1 if plus_one else self.w[name])

    def _act(self, x: Tensor) -> Tensor:
        if self.mistake == "silu":
            return torch.nn.functional.silu(x)
        how = "none" if self.mistake == "exact gelu" else "tanh"
        return torch.nn.functional.gelu(x, approximate=how)

    def _per_layer_inputs(self, ids: Tensor, x0: Tensor) -> list[Tensor] | None:
        width = getattr(self.cfg, "hidden_size_per_layer_input", 0)
        if not width:
            return None
        token = self.w["embed_tokens_per_layer.weight"][ids]
        if self.mistake != "ple without token scale":
            token = token * math.sqrt(width)
        context = self._linear(x0, "per_layer_model_projection.weight")
        context = context * self.cfg.hidden_size**-0.5
        shape = (*ids.shape, self.cfg.num_hidden_layers, width)
        context, token = context.reshape(shape), token.reshape(shape)
        if self.mistake == "ple norm over all layers":
            square = context.square().mean((-1, -2), keepdim=True)
            context = context * torch.rsqrt(square + 1e-6)
            context = context * self.w["per_layer_projection_norm.weight"]
        else:
            context = self._norm(context, "per_layer_projection_norm.weight")
        return list(((context + token) * 2**-0.5).unbind(2))

    def _layer(
        self,
        i: int,
        h: Tensor,
        ple: Tensor | None,
        store: dict[str, list[tuple[Tensor, Tensor]]],
    ) -> Tensor:
        base = f"layers.{i}."
        o = self._attention(i, self._norm(h, base + "input_layernorm.weight"), store)
        h = self._add(h, o, base + "post_attention_layernorm.weight")
        m = self._mlp(base, self._norm(h, base + "pre_feedforward_layernorm.weight"))
        if getattr(self.cfg, "enable_moe_block", False):
            m = self._mixture(base, h, m)
        h = self._add(h, m, base + "post_feedforward_layernorm.weight")
        if ple is not None:
            source = self._norm(h, None) if self.mistake == "ple gate normed" else h
            gate = self._act(self._linear(source, base + "per_layer_input_gate.weight"))
            p = self._linear(gate * ple, base + "per_layer_projection.weight")
            h = h + self._norm(p, base + "post_per_layer_input_norm.weight")
        if self.gemma3 or self.mistake == "no layer scalar":
            return h
        return h * self.w[base + "layer_scalar"]

    def _add(self, h: Tensor, branch: Tensor, norm: str) -> Tensor:
        if self.mistake == "norm after the residual":
            return self._norm(h + branch, norm)
        return h + self._norm(branch, norm)

    def _mlp(self, base: str, x: Tensor) -> Tensor:
        gate = self._act(self._linear(x, base + "mlp.gate_proj.weight"))
        up = self._linear(x, base + "mlp.up_proj.weight")
        return self._linear(gate * up, base + "mlp.down_proj.weight")

    def _frequencies(self, i: int, dim: int) -> Tensor:
        kind = self.cfg.layer_types[i]
        rope = self.cfg.rope_parameters[kind]
        theta = rope["rope_theta"]
        if self.mistake == "one rope base":
            theta = self.cfg.rope_parameters[tiny.G]["rope_theta"]
        pairs = torch.arange(dim // 2, dtype=torch.float64)
        share = rope.get("partial_rotary_factor", 1.0)
        over = dim
        if share != 1.0 and self.mistake == "rope exponent over the rotated part":
            over = int(dim * share)
        freq = torch.exp(-2 * pairs / over * math.log(theta))
        if self.mistake != "rope on every pair":
            freq[int(share * dim // 2) :] = 0
        if self.mistake != "no rope scaling":
            freq = freq / rope.get("factor", 1.0)
        return freq

    def _rope(self, i: int, x: Tensor) -> Tensor:
        dim, count = x.shape[-1], x.shape[1]
        at = torch.arange(count, dtype=torch.float64)
        if self.mistake == "position off by one after the window":
            at[tiny.WINDOW :] -= 1
        angle = torch.outer(at, self._frequencies(i, dim))
        cos, sin = (f(angle).to(self.dtype)[:, None] for f in (torch.cos, torch.sin))
        if self.mistake == "rope pairs interleaved":
            a, b = x[..., ::2], x[..., 1::2]
            pair = (a * cos - b * sin, b * cos + a * sin)
            return torch.stack(pair, -1).flatten(-2)
        a, b = x.chunk(2, -1)
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)

    def _keys_values(self, i: int, x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
        base = f"layers.{i}.self_attn."
        shape = (*x.shape[:2], -1, dim)
        raw = self._linear(x, base + "k_proj.weight").reshape(shape)
        k = self._norm(raw, base + "k_norm.weight")
        if base + "v_proj.weight" in self.w:
            v = self._linear(x, base + "v_proj.weight").reshape(shape)
        else:
            v = k if self.mistake == "values from normed keys" else raw
        if not self.gemma3 and self.mistake != "no value norm":
            v = self._norm(v, None)
        k = self._rope(i, k)
        if self.rounding.cache is not None:
            k, v = self.rounding.cache(k), self.rounding.cache(v)
        return k, v

    def _attention(
        self, i: int, x: Tensor, store: dict[str, list[tuple[Tensor, Tensor]]]
    ) -> Tensor:
        base, kind = f"layers.{i}.self_attn.", self.cfg.layer_types[i]
        dim = self.w[base + "q_norm.weight"].shape[0]
        owned = store.setdefault(kind, [])
        if base + "k_proj.weight" in self.w:
            owned.append(self._keys_values(i, x, dim))
        k, v = owned[0 if self.mistake == "first owner as source" else -1]
        if base + "k_proj.weight" in self.w:
            k, v = owned[-1]
        q = self._linear(x, base + "q_proj.weight").reshape(*x.shape[:2], -1, dim)
        q = self._rope(i, self._norm(q, base + "q_norm.weight"))
        group = q.shape[2] // k.shape[2]
        if self.mistake == "neighbour head group":
            k, v = (t.tile(1, 1, group, 1) for t in (k, v))
        else:
            k, v = (t.repeat_interleave(group, 2) for t in (k, v))
        plain = self.gemma3 == (self.mistake == "other score scale")
        scores = torch.einsum("bthd,bshd->bhts", q, k) * (1.0 if plain else dim**-0.5)
        scores = scores.masked_fill(~self._mask(x.shape[1], kind), -math.inf)
        mixed = torch.einsum("bhts,bshd->bthd", scores.softmax(-1), v).flatten(-2)
        return self._linear(mixed, base + "o_proj.weight")

    def _mask(self, count: int, kind: str) -> Tensor:
        window = self.cfg.sliding_window
        window += {"window one short": -1, "window one long": 1}.get(self.mistake, 0)
        back = torch.arange(count)[:, None] - torch.arange(count)
        mask = back >= 0
        return mask & (back < window) if kind == tiny.S else mask

    def _mixture(self, base: str, r: Tensor, dense: Tensor) -> Tensor:
        one, two = ("1", "2") if self.mistake != "crossed norms" else ("2", "1")
        norm = base + "post_feedforward_layernorm_{}.weight"
        share = self._router(base, r)
        x = self._norm(r, base + "pre_feedforward_layernorm_2.weight")
        gate_up = base + "experts.gate_up_proj"
        total = torch.zeros_like(x)
        x = self._round(x, gate_up)
        for e in range(self.cfg.num_experts):
            gate, up = (x @ self.w[gate_up][e].T).chunk(2, -1)
            if self.mistake == "gate and up swapped":
                gate, up = up, gate
            inner = self._round(self._act(gate) * up, base + "experts.down_proj")
            y = inner @ self.w[base + "experts.down_proj"][e].T
            total = total + share[..., e : e + 1] * y
        total = self._norm(total, norm.format(two))
        if self.mistake == "no dense branch":
            return total
        return self._norm(dense, norm.format(one)) + total

    def _round(self, x: Tensor, name: str) -> Tensor:
        inputs = self.rounding.inputs
        return inputs(x) if inputs and name in self.rounding.names else x

    def _router(self, base: str, r: Tensor) -> Tensor:
        t = self._norm(r, None)
        if self.mistake == "router from normed input":
            t = self._norm(r, base + "pre_feedforward_layernorm_2.weight")
        if self.mistake != "router without scale":
            t = t * self.w[base + "router.scale"]
        if self.mistake != "router without root":
            t = t * self.cfg.hidden_size**-0.5
        p = (t @ self.w[base + "router.proj.weight"].T).softmax(-1)
        best = p.topk(self.cfg.top_k_experts, -1)
        chosen = best.values / best.values.sum(-1, keepdim=True)
        if self.mistake != "no expert scale":
            chosen = chosen * self.w[base + "router.per_expert_scale"][best.indices]
        return torch.zeros_like(p).scatter(-1, best.indices, chosen)


def _batch(ids: Prompts) -> Tensor:
    """Stack prompts of equal length.

    Parameters
    ----------
    ids : list of int, or list of lists of int
        One prompt or several.

    Returns
    -------
    Tensor
        (B, T) ids.
    """
    made = torch.tensor(ids)
    return made if made.ndim == 2 else made[None]


def _rows(logits: Tensor) -> F64:
    """Join the positions of all prompts.

    Parameters
    ----------
    logits : Tensor
        (B, T, vocab).

    Returns
    -------
    ndarray
        (B T, vocab) float64.
    """
    return np.asarray(logits.flatten(0, 1).double().numpy())


def exact_logits(model: Any, ids: Prompts, mistake: str = "") -> F64:
    """Return the logits of float64 arithmetic.

    Parameters
    ----------
    model : PreTrainedModel
        Weights and configuration.
    ids : list of int, or list of lists of int
        One prompt, or several of equal length; T is the number of all their ids.
    mistake : str
        A deliberate mistake, or nothing.

    Returns
    -------
    ndarray
        (T, vocab) float64.
    """
    return _rows(Forward(model, mistake=mistake)(_batch(ids)))


def round_to_int8(x: Tensor) -> Tensor:
    """Round to eight bits by block of 32: step = largest magnitude / 127.

    Parameters
    ----------
    x : Tensor
        (..., columns).

    Returns
    -------
    Tensor
        The values the codes stand for.
    """
    blocks = x.reshape(*x.shape[:-1], -1, BLOCK)
    step = blocks.abs().amax(-1, keepdim=True) / 127
    safe = torch.where(step == 0, 1, step)
    return (torch.round(blocks / safe) * step).flatten(-2)


def int8_logits(
    model: Any, ids: Prompts, names: frozenset[str], mistake: str = ""
) -> F64:
    """Emulate the engine: exact, but for eight-bit inputs of the named matrices.

    Parameters
    ----------
    model : PreTrainedModel
        Weights and configuration.
    ids : list of int, or list of lists of int
        One prompt, or several of equal length; T is the number of all their ids.
    names : frozenset of str
        See `tiny.quantised_linears`.
    mistake : str
        A deliberate mistake, or nothing.

    Returns
    -------
    ndarray
        (T, vocab) float64.
    """
    forward = Forward(model, mistake=mistake)
    return _rows(forward(_batch(ids), Rounding(names, round_to_int8)))


def cache_logits(model: Any, ids: Prompts, rounded: Callable[[Tensor], Tensor]) -> F64:
    """Emulate a cache that rounds.

    Parameters
    ----------
    model : PreTrainedModel
        Weights and configuration.
    ids : list of int, or list of lists of int
        One prompt, or several of equal length; T is the number of all their ids.
    rounded : callable
        What becomes of keys and of values, shape (batch, tokens, heads, head_dim).

    Returns
    -------
    ndarray
        (T, vocab) float64.
    """
    return _rows(Forward(model)(_batch(ids), Rounding(cache=rounded)))


def in_half(x: Tensor) -> Tensor:
    """Round to IEEE half precision."""
    return x.half().to(x.dtype)


def in_8_bits(x: Tensor) -> Tensor:
    """Round each row as a cache of 8 bits does, by the slow twin."""
    kept = reference.quantize_kv(x.float().numpy())
    return torch.from_numpy(reference.dequantize_kv(kept)).to(x.dtype)


@dataclass(frozen=True)
class ActivationNoise:
    """What rounding activations to eight bits may do to logits.

    Rounding to the nearest multiple of a step d moves a number by something in
    [-d/2, d/2], evenly spread as long as the numbers span many steps, and each number
    apart from the others. The engine's error is therefore one more draw of the noise
    that is drawn here: uniform in [-d/2, d/2], with the same d, on the same inputs.
    (The block's largest number is hit exactly by the real rounding, and moved by the
    noise: the noise is the larger of the two, by 1/32 in variance.)

    If the engine computes the right thing, its error and the draws are exchangeable:
    the chance that it exceeds all of n draws is 1 / (n + 1) whatever their
    distribution. The limits below leave more room than that, measured in the spread of
    the draws themselves, so that a right engine fails practically never.

    Attributes
    ----------
    exact : ndarray
        (T, vocab) logits without rounding.
    sigma : ndarray
        (T, vocab) root mean square of the draws of each logit.
    middle : ndarray
        (T, vocab) median of the draws' magnitudes, blind to rare large ones: where two
        experts are nearly tied, noise that swaps them moves a few positions a lot.
    limits : ndarray
        Limits for the three scores.
    """

    exact: F64
    sigma: F64
    middle: F64
    limits: F64

    def score(self, logits: npt.NDArray[Any]) -> F64:
        """Measure how far logits are from the exact ones, in units of the noise.

        Parameters
        ----------
        logits : ndarray
            (T, vocab).

        Returns
        -------
        ndarray
            (3,): root mean square and largest of |error| / sigma, median of
            |error| / middle. Each belongs below its limit.
        """
        return _scores(np.abs(logits - self.exact), self.sigma, self.middle)


def _scores(error: F64, sigma: F64, middle: F64) -> F64:
    """Reduce errors to the three scores of `ActivationNoise.score`.

    Parameters
    ----------
    error, sigma, middle : ndarray
        (T, vocab) magnitudes.

    Returns
    -------
    ndarray
        (3,) scores.
    """
    z = error / sigma
    return np.array([np.sqrt(np.mean(z**2)), z.max(), np.median(error / middle)])


def activation_noise(
    model: Any,
    ids: Prompts,
    names: frozenset[str],
    draws: int = 48,
    seed: int = 0,
    block: int | None = BLOCK,
) -> ActivationNoise:
    """Draw the noise of eight-bit activations.

    The limits come from leaving each draw out in turn and scoring it against the
    others, which is what later happens to the engine. The limits of the root mean
    square and of the median are their largest value plus six standard deviations of the
    draws' own scores: a draw exceeds the largest of 48 once in 49 times, and these
    scores are averages over thousands of logits, close to normal, where six deviations
    more are out of reach. The largest single ratio has a heavier tail: its limit is
    twice the largest that was drawn, and a tail that falls like t^-47 (Student's, with
    the draws' degrees of freedom) is thinner by 2^-47 there.

    Parameters
    ----------
    model : PreTrainedModel
        Weights and configuration.
    ids : list of int, or list of lists of int
        One prompt, or several of equal length; T is the number of all their ids.
    names : frozenset of str
        See `tiny.quantised_linears`.
    draws : int
        Number of draws.
    seed : int
        Seed.
    block : int or None
        Inputs that share a step; None: a row.

    Returns
    -------
    ActivationNoise
        Exact logits, noise and limits.
    """
    generator = torch.Generator().manual_seed(seed)

    def blur(x: Tensor) -> Tensor:
        blocks = x.reshape(*x.shape[:-1], -1, block or x.shape[-1])
        step = blocks.abs().amax(-1, keepdim=True) / 127
        even = torch.rand(blocks.shape, generator=generator, dtype=x.dtype) - 0.5
        return (blocks + step * even).flatten(-2)

    # Noise is about 1e-2 and float32 arithmetic errs by 1e-5: single precision does.
    forward = Forward(model, torch.float32)
    parts, batch = [], 16
    for at in range(0, draws, batch):
        count = min(batch, draws - at)
        out = forward(_batch(ids).repeat(count, 1), Rounding(names, blur))
        parts.append(out.reshape(count, -1, out.shape[-1]))
    exact = exact_logits(model, ids)
    error = np.abs(torch.cat(parts).double().numpy() - exact)
    total, middle = (error**2).sum(0), np.median(error, 0)
    scores = np.array(
        [_scores(e, np.sqrt((total - e**2) / (draws - 1)), middle) for e in error]
    )
    limits = scores.max(0) + 6 * scores.std(0)
    limits[1] = 2 * scores[:, 1].max()
    return ActivationNoise(exact, np.sqrt(total / draws), middle, limits)
