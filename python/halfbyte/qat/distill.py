# python/halfbyte/qat/distill.py
# SPDX-License-Identifier: Apache-2.0
"""Training of a prepared model towards the one it was made of."""

from __future__ import annotations

import math
import re
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from halfbyte._arguments import not_negative, number, one_of, positive, whole
from halfbyte.errors import ArgumentError, NumericalError
from halfbyte.qat import loss as losses
from halfbyte.qat.gemma import hidden_states, text_model, texts
from halfbyte.qat.modules import FakeQuantEmbedding, FakeQuantLinear
from halfbyte.qat.prepare import fake_modules, prepared

__all__ = ["DivergenceError", "distill"]

Entry = dict[str, float]
_Side = tuple[Tensor, losses.Head]  # hidden states (B, T, H), and the head

_CHECK_EVERY = 10  # steps: a look at the loss waits for the GPU
_CALM, _LATE = 20, 5  # steps whose medians are compared
_NOTHING = 1e-6  # nats: what float32 makes of no difference at all


class DivergenceError(NumericalError):
    """A training whose loss went away instead of down.

    Attributes
    ----------
    log : list of dict
        What `distill` would have returned, up to the step in question.
    """

    log: list[Entry]


@dataclass(frozen=True)
class _Plan:
    """What `distill` was asked for and passes on."""

    steps: int
    warmup: float
    final: float
    clip: float | None
    loss: str
    chunk: int
    limit: float
    compile: bool

    def rate(self, step: int) -> float:
        """Return the factor of all learning rates in `step`, from 0."""
        warm = max(1, round(self.warmup * self.steps))
        if step < warm:
            return (step + 1) / warm
        done = (step - warm) / max(1, self.steps - warm)
        return self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * done))


def distill(
    student: Any,
    teacher: Any,
    batches: Iterable[Tensor],
    *,
    steps: int,
    lr: float = 2e-5,
    step_lr: float = 5e-5,
    act_lr: float = 1e-3,
    warmup: float = 0.06,
    final: float = 0.05,
    clip: float | None = None,
    loss: str = "kl",
    train_norms: bool = False,
    train_embeddings: bool = True,
    seed: int = 0,
    chunk: int = losses.CHUNK,
    limit: float = 4.0,
    compile: bool = False,
    callback: Callable[[Entry], None] | None = None,
) -> list[Entry]:
    """Train a prepared model to predict what another one predicts.

    Adam with betas 0.9 and 0.99 and no weight decay; rates rise linearly over `warmup`
    and fall to `final` along a cosine.

    Parameters
    ----------
    student : transformers.PreTrainedModel
        Prepared, and calibrated if its scheme has static activations. Trained in place.
    teacher : transformers.PreTrainedModel
        The unquantized model, on the same device. Not changed.
    batches : iterable of int tensors, shape (B, T)
        Tokens of a step each. A sequence is shuffled, and gone through as often as it
        takes; of any other iterable there must be enough.
    steps : int
        Steps of the optimizer.
    lr, step_lr, act_lr : float
        Rates of weights, of the logarithms of their steps, and of those of activations.
    warmup, final : float
        Share of the steps, and of the rates.
    clip : float, optional
        Largest norm of all gradients together.
    loss : {"kl", "hard"}
        KL(teacher || student) over the vocabulary, or the cross entropy of the tokens.
    train_norms : bool
        Whether norms are trained, at `lr`.
    train_embeddings : bool
        Whether quantized embeddings are; others are left as they are.
    seed : int
        Of the shuffling.
    chunk : int
        Tokens whose logits exist at once.
    limit : float
        The training ends if the loss, as the median of 5 steps, is above this many times
        the lowest that the median of 20 ever was, or the loss of the first step.
    compile : bool
        Whether layers are compiled, each for itself, and the loss.
    callback : callable, optional
        Is given each entry of the log, some steps late.

    Returns
    -------
    list of dict
        For each step ``step``, ``loss`` (nats a token), ``lr``, ``grad_norm`` (with
        `clip`), ``tokens`` so far and ``seconds``. All are numbers, fit for JSON.

    Raises
    ------
    ArgumentError, DTypeError, ShapeError
        If the student is not prepared or not calibrated, batches run out, or an
        argument does not fit.
    DivergenceError
        If the loss is not finite, or above `limit`; the message names the step and
        what moved most.
    """
    plan = _Plan(steps, warmup, final, clip, loss, chunk, limit, compile)
    _check(student, plan)
    for rate, name in ((lr, "lr"), (step_lr, "step_lr"), (act_lr, "act_lr")):
        not_negative(rate, name)
    groups = _trained(student, (lr, step_lr, act_lr), train_norms, train_embeddings)
    if compile:
        _compile_layers(student)
        if loss == "kl":
            _compile_layers(teacher)
    device = student.lm_head.weight.device
    on_gpu = device.type == "cuda"
    optimizer = torch.optim.Adam(groups, betas=(0.9, 0.99), eps=1e-10, fused=on_gpu)
    watch = _Watch(student, plan, callback)
    source = _endless(batches, seed)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = group["base"] * plan.rate(step)
        tokens = _next(source, step, device)
        optimizer.zero_grad(set_to_none=True)
        value = _backward(student, teacher, tokens, plan)
        entry = {"step": step + 1, "loss": value, "lr": lr * plan.rate(step)}
        if clip is not None:
            trained = [p for group in groups for p in group["params"]]
            entry["grad_norm"] = nn.utils.clip_grad_norm_(trained, clip)
        optimizer.step()
        watch.add(entry, tokens.numel())
    return watch.finish()


def _check(student: Any, plan: _Plan) -> None:
    prepared(student)
    whole(plan.steps, "steps", 1)
    whole(plan.chunk, "chunk", 1)
    not_negative(plan.warmup, "warmup")
    not_negative(plan.final, "final")
    if plan.clip is not None:
        positive(plan.clip, "clip")
    if not number(plan.limit, "limit") > 0:
        raise ArgumentError(f"limit: expected a number above 0, got {plan.limit}")
    one_of(plan.loss, "loss", ("kl", "hard"))
    for name, module in fake_modules(student):
        if isinstance(module, FakeQuantLinear) and module.static > module.calibrated:
            raise ArgumentError(
                f"student: {name} has no steps of activations: call "
                "halfbyte.qat.calibrate first"
            )


def _trained(
    student: Any, rates: tuple[float, float, float], norms: bool, embeddings: bool
) -> list[dict[str, Any]]:
    """Set what is trained, and sort it by its rate."""
    student.requires_grad_(False)
    weights, log_steps, act_steps = ({}, {}, {})  # by id: tied ones come twice
    for name, module in fake_modules(student):
        table = isinstance(module, FakeQuantEmbedding) or name == "lm_head"
        if table and not embeddings:
            continue
        for matrix in module.matrices:
            weights[id(module.matrix(matrix))] = module.matrix(matrix)
        for key, parameter in module.named_parameters(recurse=False):
            if key in ("input_log_step", "output_log_step"):
                act_steps[id(parameter)] = parameter
            elif key.endswith("_log_step"):
                log_steps[id(parameter)] = parameter
    if norms:
        weights |= {id(norm): norm for norm in _norms(student)}
    groups = []
    for members, rate in zip((weights, log_steps, act_steps), rates, strict=True):
        trained = [p.requires_grad_(True) for p in members.values()]
        if trained:
            groups.append({"params": trained, "base": rate, "lr": rate})
    return groups


def _norms(student: nn.Module) -> Iterator[nn.Parameter]:
    for name, parameter in text_model(student)[1].named_parameters():
        if re.search(r"norm(_\d)?\.weight$", name):
            # Steps of 1e-5 vanish in bfloat16; norms multiply in float32 in any case.
            parameter.data = parameter.data.float()
            yield parameter


def _compile_layers(model: Any) -> None:
    layers, limits = text_model(model)[1].layers, torch._dynamo.config
    # All layers are one function to torch, which compiles one 8 times and no more. There
    # are student and teacher, with shorter batches at the end, with gradients and without.
    most = 8 * len(layers)
    limits.recompile_limit = max(limits.recompile_limit, most)
    limits.accumulated_recompile_limit = max(limits.accumulated_recompile_limit, most)
    for layer in layers:
        layer.compile()


def _endless(batches: Iterable[Tensor], seed: int) -> Iterator[Tensor]:
    if not isinstance(batches, Sequence):
        yield from batches
        return
    order = torch.Generator().manual_seed(seed)
    while batches:
        for i in torch.randperm(len(batches), generator=order).tolist():
            yield batches[i]


def _next(source: Iterator[Tensor], step: int, device: torch.device) -> Tensor:
    tokens = next(source, None)
    if tokens is None:
        raise ArgumentError(f"batches: expected one a step, they ended after {step}")
    return texts(tokens, "batches").to(device, torch.int64, non_blocking=True)


def _backward(student: Any, teacher: Any, tokens: Tensor, plan: _Plan) -> Tensor:
    """Compute the loss and put its gradients into the student's parameters."""
    hidden, weight = hidden_states(student, tokens), losses.head_weight(student)
    with torch.no_grad():
        head = losses.head_of(student, hidden, weight)
        find = _find_kl if plan.loss == "kl" else _find_hard
        found = find((hidden, head), teacher, tokens, plan, weight.requires_grad)
    roots, grads = [hidden], [found.hidden]
    if found.weight is not None:
        roots.append(weight)
        grads.append(found.weight.to(weight.dtype))
    torch.autograd.backward(roots, grads)
    return found.value


def _find_kl(
    student: _Side, teacher: Any, tokens: Tensor, plan: _Plan, with_weight: bool
) -> losses.Loss:
    want = hidden_states(teacher, tokens)
    found = losses.kl_loss(
        (student[0].flatten(0, 1), student[1]),
        (want.flatten(0, 1), losses.head_of(teacher, want)),
        chunk=plan.chunk,
        with_weight=with_weight,
        compile=plan.compile,
    )
    return found._replace(hidden=found.hidden.view_as(student[0]))


def _find_hard(
    student: _Side, _: Any, tokens: Tensor, plan: _Plan, with_weight: bool
) -> losses.Loss:
    rows, labels = student[0][:, :-1], tokens[:, 1:].flatten()
    found = losses.hard_loss(
        (rows.flatten(0, 1), student[1]),
        labels,
        chunk=plan.chunk,
        with_weight=with_weight,
    )
    grad = torch.zeros_like(student[0])  # nothing follows the last token
    grad[:, :-1] = found.hidden.view_as(rows)
    return found._replace(hidden=grad)


class _Watch:
    """Keeps the log, and looks whether the loss goes down."""

    def __init__(
        self, student: nn.Module, plan: _Plan, callback: Callable[[Entry], None] | None
    ) -> None:
        self.student, self.plan, self.callback = student, plan, callback
        self.start = {
            name: p.detach().to("cpu", copy=True)
            for name, p in student.named_parameters()
            if p.requires_grad
        }
        self.began = time.monotonic()
        self.tokens = 0
        self.log: list[Entry] = []
        self.lowest = math.inf
        self.waiting: list[dict[str, Any]] = []

    def add(self, entry: dict[str, Any], tokens: int) -> None:
        """Take the entry of a step, with numbers that may still be on a GPU."""
        self.tokens += tokens
        entry |= {"tokens": self.tokens, "seconds": time.monotonic() - self.began}
        self.waiting.append(entry)
        if len(self.waiting) >= _CHECK_EVERY:
            self._look()

    def finish(self) -> list[Entry]:
        """Return the log."""
        self._look()
        return self.log

    def _look(self) -> None:
        waiting, self.waiting = self.waiting, []
        for entry in waiting:
            done = {key: float(value) for key, value in entry.items()}
            done |= {key: int(done[key]) for key in ("step", "tokens")}
            self.log.append(done)
            if self.callback is not None:
                self.callback(done)
            self._check(done)

    def _check(self, entry: Entry) -> None:
        past = [e["loss"] for e in self.log[-_CALM:]]
        if len(self.log) == 1 or len(past) == _CALM:
            self.lowest = min(self.lowest, statistics.median(past))
        late = statistics.median(past[-_LATE:])
        bound = self.plan.limit * max(self.lowest, _NOTHING)
        if math.isfinite(entry["loss"]) and late <= bound:
            return
        error = DivergenceError(
            f"step {int(entry['step'])}: the loss is {entry['loss']:.3g}, and was "
            f"{self.lowest:.3g}; {self._moved_most()}: lower its rate, or pass clip="
        )
        error.log = self.log
        raise error

    def _moved_most(self) -> str:
        """Say which kind of parameter is farthest from where it began."""
        far: dict[str, list[tuple[float, str]]] = {}
        now = dict(self.student.named_parameters())
        for name, before in self.start.items():
            moved = (now[name].detach().cpu() - before).square().mean().sqrt()
            size = 1.0 if name.endswith("_log_step") else before.square().mean().sqrt()
            distance = float(torch.nan_to_num(moved / size, nan=math.inf))
            kind = ".".join(part for part in name.split(".")[-3:] if not part.isdigit())
            far.setdefault(kind, []).append((distance, name))
        kind = max(far, key=lambda k: statistics.fmean(d for d, _ in far[k]))
        distance, name = max(far[kind])
        return f"{kind} moved most, {name} by {distance:.3g} of its size"
