# tests/python/test_qat.py
# SPDX-License-Identifier: Apache-2.0
"""Quantization-aware training of tiny models of every supported architecture."""

from __future__ import annotations

import copy
import importlib
import json
import math
import pickle
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
from halfbyte import qat
from halfbyte.errors import (
    ArgumentError,
    DTypeError,
    ModelError,
    ShapeError,
    UnsupportedError,
)
from halfbyte.qat import loss as losses
from halfbyte.torch import QuantLinear
from torch import Tensor, nn
from transformers import Gemma3TextModel, Gemma4TextConfig

distillation = importlib.import_module("halfbyte.qat.distill")  # not the function

PACKAGE = Path(qat.__file__).parents[1]
IDS = torch.tensor([tiny.prompt(32, seed=seed) for seed in range(4)])
HELD_OUT = torch.tensor([tiny.prompt(32, seed=seed) for seed in range(4, 8)])
RATES = {"lr": 1e-3, "step_lr": 1e-3}
each_model = pytest.mark.parametrize("name", tiny.NAMES)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def grids_by_role(report: qat.Preparation) -> dict[str, set[int]]:
    """Bits of the modules of each role, numbers of layers left out."""
    found: dict[str, set[int]] = {}
    for name, grid in report.swapped.items():
        role = ".".join(part for part in name.split(".") if not part.isdigit())
        found.setdefault(role.removeprefix("model."), set()).add(grid.bits)
    return found


# ---- prepare


@each_model
def test_every_matrix_is_swapped(name: str) -> None:
    model = tiny.build(name)
    matrices = {
        key.removesuffix(".weight")
        for key, value in model.model.state_dict().items()
        if value.ndim == 2 and "router" not in key and "embed" not in key
    }
    experts = {
        key.rpartition(".")[0]
        for key, value in model.model.state_dict().items()
        if value.ndim == 3
    }
    report = qat.prepare(model)
    assert set(report.swapped) == {f"model.{key}" for key in matrices | experts}
    assert set(report.swapped.values()) == {qat.Grid(4, 32, True)}
    kinds = (qat.FakeQuantLinear, qat.FakeQuantExperts)
    assert all(isinstance(model.get_submodule(key), kinds) for key in report.swapped)
    trained = {key for key, value in model.named_parameters() if value.requires_grad}
    assert not [key for key in trained if "norm" in key or "embed" in key]
    assert ("router" in str(report)) == (name == "26b")
    assert f"{len(report.swapped)} of 4 bits" in str(report)


@each_model
def test_tables_are_swapped_when_asked(name: str) -> None:
    model = tiny.build(name)
    report = qat.prepare(model, embeddings=True, per_layer=True)
    assert isinstance(model.model.embed_tokens, qat.FakeQuantEmbedding)
    assert {"model.embed_tokens", "lm_head"} <= set(report.swapped)
    has_ple = getattr(model.config, "hidden_size_per_layer_input", 0) > 0
    assert ("model.embed_tokens_per_layer" in report.swapped) == has_ple
    # The head is tied, and stays so: one weight, one set of steps.
    table, head = model.model.embed_tokens, model.lm_head
    assert head.weight is table.weight
    assert head.weight_log_step is table.weight_log_step


def test_an_untied_head_has_steps_of_its_own() -> None:
    model = tiny.build("gemma3")
    model.config.tie_word_embeddings = False
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach() * 2)
    qat.prepare(model, embeddings=True)
    step = qat.fake.step_of
    table, head = model.model.embed_tokens, model.lm_head
    got = step(head.weight_log_step, True) / step(table.weight_log_step, True)
    assert torch.equal(got, torch.full_like(got, 2.0))


def test_the_mobile_bits_are_those_of_the_releases() -> None:
    released = {
        "layers.self_attn.q_proj": {4},
        "layers.self_attn.k_proj": {4},
        "layers.self_attn.v_proj": {4},
        "layers.self_attn.o_proj": {4},
        "layers.per_layer_input_gate": {8},
        "layers.per_layer_projection": {8},
        "embed_tokens": {2},
        "lm_head": {2},
    }
    for name, mlp, ple in (("e2b", {2, 4}, {4}), ("e4b", {4}, {2})):
        report = qat.prepare(
            tiny.build(name), "mobile", embeddings=True, per_layer=True
        )
        mlps = {f"layers.mlp.{kind}_proj": mlp for kind in ("gate", "up", "down")}
        want = released | mlps | {"embed_tokens_per_layer": ple}
        assert grids_by_role(report) == want
        assert list(report.skipped) == ["model.per_layer_model_projection"]
        assert {(g.group, g.half) for g in report.swapped.values()} == {(None, False)}


def test_e2b_has_two_bits_from_layer_15() -> None:
    config = Gemma4TextConfig(
        num_hidden_layers=35, num_kv_shared_layers=20, use_double_wide_mlp=True
    )
    scheme = qat.mobile(config)
    bits = [scheme.grid_of(f"model.layers.{i}.mlp.up_proj").bits for i in range(35)]
    assert bits == [4] * 15 + [2] * 20


def test_other_models_have_two_bits_in_the_second_half() -> None:
    report = qat.prepare(tiny.build("gemma3"), "mobile")  # seven layers
    bits = [report.swapped[f"model.layers.{i}.mlp.up_proj"].bits for i in range(7)]
    assert bits == [4, 4, 4, 2, 2, 2, 2]


def test_a_table_can_have_steps_of_each_layer() -> None:
    model = tiny.build("e2b")
    scheme = qat.mobile(model.config, per_layer_steps=True)
    report = qat.prepare(model, scheme, embeddings=True, per_layer=True)
    grid = report.swapped["model.embed_tokens_per_layer"]
    assert grid == qat.Grid(4, model.config.hidden_size_per_layer_input, False)
    steps = model.model.embed_tokens_per_layer.weight_log_step
    assert steps.shape == (tiny.VOCAB, model.config.num_hidden_layers, 1)
    assert report.swapped["model.embed_tokens"] == qat.Grid(2, None, False)


def test_names_are_kept_for_what_can_be_written() -> None:
    with pytest.raises(ArgumentError, match="q4_0 is 4 bits in groups of 32"):
        qat.Scheme("q4_0", qat.Grid(4, 64))
    with pytest.raises(ArgumentError, match="mobile has one step a row"):
        qat.Scheme("mobile", qat.Grid())


def test_the_leftmost_pattern_counts_then_the_first() -> None:
    scheme = qat.Scheme("own", qat.Grid(), (("proj", 2), ("layers", 8), (r"lay", 4)))
    assert scheme.grid_of("model.layers.0.q_proj").bits == 8
    assert scheme.grid_of("q_proj").bits == 2
    assert scheme.grid_of("other").bits == 4


def test_it_begins_as_the_quantized_model() -> None:
    # The float weights stay; what is computed with is theirs on the grid.
    model, before = tiny.build("e4b"), tiny.build("e4b").model.state_dict()
    qat.prepare(model)
    for name, module in model.model.named_modules():
        if isinstance(module, qat.FakeQuantLinear):
            assert torch.equal(module.weight, before[f"{name}.weight"])
            wrong = (module.quantized() - module.weight).detach().std()
            # Sixteen levels over a Gaussian: an error of a tenth of the deviation.
            assert 0.05 < float(wrong / module.weight.detach().std()) < 0.15, name


def test_what_does_not_fit_is_refused() -> None:
    model = tiny.build("gemma3")
    with pytest.raises(ArgumentError, match="expected 'q4_0', 'mobile' or a"):
        qat.prepare(model, "q5_0")
    with pytest.raises(ArgumentError, match="one of search, ggml, got 'rtn'"):
        qat.prepare(model, step="rtn")
    with pytest.raises(ArgumentError, match="a rule of Q4_0, not of mobile"):
        qat.prepare(model, "mobile", step="ggml")
    with pytest.raises(
        ModelError, match=r"q_proj\.weight: expected rows of a multiple"
    ):
        qat.prepare(model, qat.Scheme("own", qat.Grid(4, 48)))
    other = qat.Scheme("own", qat.Grid(), (("lm_head", 8),))
    with pytest.raises(ArgumentError, match=r"tied to, 4 bits .* got 8 bits a weight"):
        qat.prepare(model, other, embeddings=True)
    # None of them has touched it.
    assert not [m for m in model.modules() if isinstance(m, qat.FakeQuantLinear)]
    assert all(p.requires_grad for p in model.parameters())
    qat.prepare(model)
    with pytest.raises(ArgumentError, match="it was prepared before: build it anew"):
        qat.prepare(model)


def test_what_is_no_module_is_refused() -> None:
    with pytest.raises(DTypeError, match=r"model: expected a torch.nn.Module, got int"):
        qat.prepare(3)


@pytest.mark.parametrize("other", [nn.Linear(4, 4), "headless"])
def test_other_models_are_refused(other: Any) -> None:
    if other == "headless":
        other = Gemma3TextModel(tiny.config("gemma3"))
    with pytest.raises(UnsupportedError, match=f"got {type(other).__name__}"):
        qat.prepare(other)


def test_packed_layers_are_refused() -> None:
    model = tiny.build("gemma3")
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear):
            model.set_submodule(name, QuantLinear.from_linear(module, "q8_0"))
    for tables in (False, True):
        with pytest.raises(
            ModelError, match=r"Linear layers in model, found none: load"
        ):
            qat.prepare(model, embeddings=tables)


def test_the_mobile_schema_has_no_experts() -> None:
    model = tiny.build("26b")
    with pytest.raises(
        UnsupportedError, match=r"experts: the mobile schema has no form"
    ):
        qat.prepare(model, "mobile")
    assert not hasattr(model, "halfbyte_qat")


# ---- calibrate


FRACTIONS = [0.07 ** (i / 7) for i in range(8)]


def best_step(x: Tensor) -> tuple[float, float]:
    """The step of least squared error, and its part of the one that clips nothing."""
    wide, errors = x.double(), []
    for fraction in FRACTIONS:
        step = fraction * wide.abs().max() / 127
        y = (wide / step).round().clamp(-128, 127) * step
        errors.append(float((y - wide).square().sum()))
    best = FRACTIONS[errors.index(min(errors))]
    return best * float(wide.abs().max()) / 127, best


def test_each_layer_gets_steps_for_what_it_sees() -> None:
    model, seen = tiny.build("e2b"), dict[str, tuple[Tensor, Tensor]]()
    qat.prepare(model, "mobile")
    for name, module in model.named_modules():
        if isinstance(module, qat.FakeQuantLinear):

            def note(_: Any, args: Any, out: Tensor, name: str = name) -> None:
                seen[name] = (args[0], out)

            module.register_forward_hook(note)
    assert qat.calibrate(model, [IDS]) == 2 * len(seen)
    for name, (x, y) in seen.items():
        module = model.get_submodule(name)
        assert module.calibrated
        for values, log_step in (
            (x, module.input_log_step),
            (y, module.output_log_step),
        ):
            found = float(log_step.detach().exp())
            assert math.isclose(found, best_step(values)[0], rel_tol=1e-5), name


class OneLayer(nn.Module):
    """What `calibrate` needs of a model: a layer that sees many values, one far out."""

    config = tiny.config("gemma3")
    lm_head = None

    def __init__(self, far: float) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(0)
        self.table = torch.randn(512, 256, generator=draw)
        self.table[3, 5] = far
        self.layer = qat.FakeQuantLinear(nn.Linear(256, 8), qat.Grid(), static=True)

    def model(self, input_ids: Tensor, use_cache: bool) -> SimpleNamespace:
        assert not use_cache
        return SimpleNamespace(last_hidden_state=self.layer(self.table[input_ids]))


@pytest.mark.parametrize(("far", "clipped"), [(4.0, False), (15.0, True), (90.0, True)])
def test_the_step_is_that_of_least_error(far: float, clipped: bool) -> None:
    stub, ids = OneLayer(far), torch.arange(512).view(8, 64)
    assert qat.calibrate(stub, ids.split(3)) == 2
    step, fraction = best_step(stub.table)
    assert math.isclose(
        float(stub.layer.input_log_step.detach().exp()), step, rel_tol=1e-5
    )
    assert (fraction < 1) == clipped


def hooked(model: nn.Module) -> list[str]:
    return [name for name, m in model.named_modules() if m._forward_hooks]


def test_calibrate_leaves_nothing_behind() -> None:
    model = tiny.build("gemma3")
    qat.ptq(model, "mobile", [IDS])
    assert hooked(model) == []
    with pytest.raises(IndexError):  # of an embedding
        qat.calibrate(model, [IDS, torch.full((1, 4), tiny.VOCAB)])
    assert hooked(model) == []


def test_calibrate_starts_anew() -> None:
    """Neither what was seen before counts, nor are its steps in use meanwhile."""
    twice, once = tiny.build("gemma3"), tiny.build("gemma3")
    qat.ptq(twice, "mobile", [torch.cat([IDS, HELD_OUT])])
    qat.calibrate(twice, [HELD_OUT[:1, :5]])
    qat.ptq(once, "mobile", [HELD_OUT[:1, :5]])
    want = once.state_dict()
    assert all(torch.equal(t, want[key]) for key, t in twice.state_dict().items())


def test_what_calibrate_needs() -> None:
    model = tiny.build("gemma3")
    with pytest.raises(ArgumentError, match="expected layers with static activations"):
        qat.calibrate(model, [IDS])
    qat.prepare(model, "mobile")
    with pytest.raises(ArgumentError, match="expected tokens, got none"):
        qat.calibrate(model, [])
    with pytest.raises(ArgumentError, match=r"call halfbyte\.qat\.calibrate first"):
        qat.distill(model, tiny.build("gemma3"), [IDS], steps=1)


def test_the_state_of_a_training_can_be_kept(tmp_path: Path) -> None:
    model, again = tiny.build("e2b"), tiny.build("e2b")
    qat.ptq(model, "mobile", [IDS], embeddings=True)
    torch.save(model.state_dict(), tmp_path / "state.pt")
    qat.prepare(again, "mobile", embeddings=True)
    again.load_state_dict(torch.load(tmp_path / "state.pt"))
    found = qat.compare(again, model, IDS)
    assert found["kl"] == 0
    assert found["top1"] == 1


# ---- losses


@pytest.mark.parametrize("cap", [None, 3.0])
@pytest.mark.parametrize("kind", ["kl", "hard"])
def test_gradients_are_autograds(kind: str, cap: float | None) -> None:
    draw = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    hidden, weight, want = normal(11, 6), normal(19, 6), normal(11, 6)
    labels = torch.randint(19, (11,), generator=draw)
    other = losses.Head(normal(19, 6), cap)
    student = (hidden, losses.Head(weight, cap))
    options: dict[str, Any] = {"chunk": 4, "with_weight": True}
    if kind == "kl":
        found = losses.kl_loss(student, (want, other), **options)
    else:
        found = losses.hard_loss(student, labels, **options)

    hidden.requires_grad_()
    weight.requires_grad_()
    logp = losses.Head(weight, cap).logits(hidden).log_softmax(-1)
    if kind == "kl":
        p = other.logits(want).log_softmax(-1)
        value = (p.exp() * (p - logp)).sum(-1).mean()
    else:
        value = nn.functional.nll_loss(logp, labels)
    value.backward()
    close = {"rtol": 1e-10, "atol": 1e-12}
    torch.testing.assert_close(found.value, value.detach(), **close)
    torch.testing.assert_close(found.hidden, hidden.grad, **close)
    assert found.weight is not None
    torch.testing.assert_close(found.weight, weight.grad, **close)


def test_the_compiled_loss_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = torch.compile(losses._kl_chunk, backend="aot_eager", fullgraph=True)
    monkeypatch.setattr(losses, "_compiled_kl", lambda: compiled)
    draw = torch.Generator().manual_seed(0)
    sides = [
        (torch.randn(11, 6, generator=draw), losses.Head(torch.randn(19, 6), 3.0))
        for _ in range(2)
    ]
    plain, made = (losses.kl_loss(*sides, chunk=4, compile=c) for c in (False, True))
    torch.testing.assert_close(made.value, plain.value, rtol=1e-6, atol=0)
    torch.testing.assert_close(made.hidden, plain.hidden, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", ["e2b", "gemma3"])
def test_compare_is_what_the_logits_say(name: str) -> None:
    model, other = tiny.build(name), tiny.build(name, seed=1)
    found = qat.compare(model, other, [HELD_OUT[:1], HELD_OUT[1:]], batch=2, chunk=7)
    with torch.no_grad():
        logits, wanted = (m(input_ids=HELD_OUT).logits for m in (model, other))
    p, q = (x[:, :-1].double().log_softmax(-1) for x in (logits, wanted))
    labels = HELD_OUT[:, 1:, None]
    assert found["tokens"] == 4 * 31
    assert math.isclose(found["kl"], (q.exp() * (q - p)).sum(-1).mean(), rel_tol=1e-5)
    for key, logp in (("ppl", p), ("teacher_ppl", q)):
        loss = float(-logp.gather(-1, labels).mean())
        assert math.isclose(math.log(found[key]), loss, rel_tol=1e-5)
    same = (p.argmax(-1) == q.argmax(-1)).double().mean()
    assert found["top1"] == float(same)
    itself = qat.compare(model, model, HELD_OUT)
    assert (itself["kl"], itself["top1"]) == (0, 1)
    with pytest.raises(ArgumentError, match="expected texts of two tokens"):
        qat.compare(model, other, HELD_OUT[:, :1])


# ---- distill


@pytest.mark.parametrize(
    ("name", "scheme"),
    [(name, "q4_0") for name in tiny.NAMES] + [("e2b", "mobile"), ("gemma3", "mobile")],
)
def test_training_brings_the_models_together(name: str, scheme: str) -> None:
    teacher = tiny.build(name)
    before = copy.deepcopy(teacher.state_dict())
    student = copy.deepcopy(teacher)
    tables = {"embeddings": True, "per_layer": True}
    qat.ptq(student, scheme, [IDS], **tables)
    untrained = qat.compare(student, teacher, IDS)["kl"]
    # The models of larger sizes nearly repeat their input, and differ by 1e-3 nats.
    lr = 1e-3 if untrained > 0.1 else 1e-4
    log = qat.distill(student, teacher, [IDS], steps=12, lr=lr, step_lr=lr)
    trained = qat.compare(student, teacher, IDS)["kl"]
    assert trained < 0.6 * untrained
    assert math.isclose(log[0]["loss"], untrained, rel_tol=0.1)  # its last tokens count
    assert log[-1]["loss"] < 0.7 * log[0]["loss"]
    after = teacher.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items())


def test_what_is_trained_and_what_is_not() -> None:
    teacher, student = tiny.build("26b"), tiny.build("26b")
    qat.prepare(student)
    before = copy.deepcopy(student.state_dict())
    qat.distill(student, teacher, [IDS], steps=2, lr=1e-4, step_lr=1e-4)
    moved = {
        key for key, now in student.state_dict().items() if not now.equal(before[key])
    }
    swapped = student.halfbyte_qat.swapped
    want = set()
    for name in swapped:
        experts = isinstance(student.get_submodule(name), qat.FakeQuantExperts)
        for matrix in ("gate_up_proj", "down_proj") if experts else ("weight",):
            want |= {
                f"{name}.{'inner.' * experts}{matrix}",
                f"{name}.{matrix}_log_step",
            }
    assert moved == want


def test_norms_and_embeddings_by_option() -> None:
    teacher, student = tiny.build("gemma3"), tiny.build("gemma3")
    qat.prepare(student, embeddings=True)
    before = copy.deepcopy(student.state_dict())
    options: dict[str, Any] = {
        "steps": 2,
        "train_norms": True,
        "train_embeddings": False,
    }
    qat.distill(student, teacher, [IDS], **options)
    for key, now in student.state_dict().items():
        table = key.startswith(("model.embed_tokens", "lm_head"))
        assert now.equal(before[key]) == table, key


def test_each_kind_of_parameter_has_its_rate() -> None:
    """The first step of Adam is the rate, whatever the gradient."""
    teacher, student = tiny.build("gemma3"), tiny.build("gemma3")
    qat.ptq(student, "mobile", [IDS])
    before = copy.deepcopy(student.state_dict())
    rates = {"lr": 1e-3, "step_lr": 2e-3, "act_lr": 4e-3}
    qat.distill(student, teacher, [IDS], steps=1, **rates)
    moved: dict[str, float] = {}
    for key, now in student.state_dict().items():
        kind = key.rpartition(".")[2]
        far = float((now - before[key]).abs().max())
        if far:
            moved[kind] = max(moved.get(kind, 0.0), far)
    # float32 rounds a sum of up to 8 to 2^-22, which is 1e-3 of the least rate at most.
    assert moved == pytest.approx(
        {
            "weight": 1e-3,
            "weight_log_step": 2e-3,
            "input_log_step": 4e-3,
            "output_log_step": 4e-3,
        },
        rel=1e-3,
    )


def test_the_log_can_be_written_and_repeats() -> None:
    teacher, entries = tiny.build("gemma3"), list[dict[str, float]]()
    batches = list(torch.cat([IDS, HELD_OUT]).split(2))

    def run(seed: int, **options: Any) -> list[dict[str, float]]:
        student = tiny.build("gemma3")
        qat.prepare(student)
        return qat.distill(student, teacher, batches, steps=6, seed=seed, **options)

    log = run(1, clip=0.5, callback=entries.append)
    assert entries == log
    assert json.loads(json.dumps(log)) == log
    assert [entry["step"] for entry in log] == list(range(1, 7))
    assert [entry["tokens"] for entry in log] == [64 * i for i in range(1, 7)]
    assert all(entry["grad_norm"] > 0 for entry in log)
    # Warm-up over one step, then a cosine to a twentieth, which a step more would reach.
    rates = [entry["lr"] / 2e-5 for entry in log]
    want = [1.0] + [0.05 + 0.475 * (1 + math.cos(math.pi * i / 5)) for i in range(5)]
    assert rates == pytest.approx(want)
    losses_ = [entry["loss"] for entry in run(1, clip=0.5)]
    assert losses_ == [entry["loss"] for entry in log]
    assert losses_ != [entry["loss"] for entry in run(2, clip=0.5)]


def test_clipping_bounds_a_step() -> None:
    # Adam divides by the size of gradients: only eps tells a clipped one, so the sum of
    # squares is looked at, not the step.
    teacher, student = tiny.build("gemma3"), tiny.build("gemma3")
    qat.prepare(student)
    qat.distill(student, teacher, [IDS], steps=1, clip=1e-6)
    grads = [p.grad for p in student.parameters() if p.grad is not None]
    norm = math.sqrt(sum(float(g.double().square().sum()) for g in grads))
    assert norm == pytest.approx(1e-6, rel=1e-3)


def test_hard_labels_are_the_tokens() -> None:
    model = tiny.build("gemma3")
    student = copy.deepcopy(model)
    qat.prepare(student)
    before = qat.compare(student, model, IDS)
    log = qat.distill(student, None, [IDS], steps=12, loss="hard", **RATES)
    after = qat.compare(student, model, IDS)
    assert log[0]["loss"] == pytest.approx(math.log(before["ppl"]), rel=1e-5)
    assert after["ppl"] < before["ppl"] / 2
    assert after["kl"] > before["kl"]


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"steps": 1.5}, DTypeError, "steps: expected a whole number, got float"),
        (
            {"lr": float("nan")},
            ArgumentError,
            "lr: expected a finite number, 0 or more",
        ),
        ({"step_lr": -1.0}, ArgumentError, "step_lr: expected a finite number"),
        ({"act_lr": "1"}, DTypeError, "act_lr: expected a number, got str"),
        ({"warmup": -0.1}, ArgumentError, "warmup: expected a finite number"),
        ({"final": float("inf")}, ArgumentError, "final: expected a finite number"),
        ({"clip": 0}, ArgumentError, "clip: expected a finite number above 0, got 0"),
        ({"chunk": 0}, ArgumentError, "chunk: expected 1 or more, got 0"),
        ({"limit": float("nan")}, ArgumentError, "limit: expected a number above 0"),
    ],
)
def test_numbers_are_refused_before_anything_is_trained(
    options: dict[str, Any], error: type[Exception], words: str
) -> None:
    teacher, student = tiny.build("gemma3"), tiny.build("gemma3")
    qat.prepare(student)
    before = {name: p.clone() for name, p in student.named_parameters()}
    with pytest.raises(error, match=f"^{words}"):
        qat.distill(student, teacher, [IDS], **({"steps": 1} | options))
    for name, p in student.named_parameters():
        assert torch.equal(p, before[name])


@pytest.mark.parametrize(
    ("wrong", "error", "words"),
    [
        (IDS.float(), DTypeError, "expected integers, got torch.float32"),
        (IDS.bool(), DTypeError, "expected integers, got torch.bool"),
        (IDS[0], ShapeError, r"expected shape \(texts, tokens\), got \(\d+,\)"),
        (IDS.tolist(), DTypeError, "expected tensors of tokens, got list"),
    ],
)
def test_what_is_no_text_is_named(
    wrong: Any, error: type[Exception], words: str
) -> None:
    teacher, student = tiny.build("gemma3"), tiny.build("gemma3")
    qat.prepare(student)
    with pytest.raises(error, match=f"^batches: {words}"):
        qat.distill(student, teacher, [wrong], steps=1)
    with pytest.raises(error, match=f"^tokens: {words}"):
        qat.compare(student, teacher, [wrong])
    model = tiny.build("gemma3")
    qat.prepare(model, "mobile")
    with pytest.raises(error, match=f"^batches: {words}"):
        qat.calibrate(model, [wrong])


def test_batches_may_run_out() -> None:
    teacher, student = tiny.build("gemma3"), tiny.build("gemma3")
    qat.prepare(student)
    with pytest.raises(ArgumentError, match="expected one a step, they ended after 2"):
        qat.distill(student, teacher, iter([IDS, IDS]), steps=3)
    with pytest.raises(ArgumentError, match="they ended after 0"):
        qat.distill(student, teacher, [], steps=3)
    for wrong, words in (({"steps": 0}, "steps: exp"), ({"loss": "mse"}, "loss: exp")):
        with pytest.raises(ArgumentError, match=words):
            qat.distill(student, teacher, [IDS], **({"steps": 1} | wrong))
    with pytest.raises(ArgumentError, match=r"call halfbyte\.qat\.prepare"):
        qat.distill(tiny.build("gemma3"), teacher, [IDS], steps=1)


def test_divergence_ends_the_training() -> None:
    teacher, student, told = tiny.build("gemma3"), tiny.build("gemma3"), []
    qat.prepare(student)
    rates = {"lr": 1e-5, "step_lr": 3.0}
    with pytest.raises(qat.DivergenceError) as caught:
        qat.distill(student, teacher, [IDS], steps=100, callback=told.append, **rates)
    error, message = caught.value, str(caught.value)
    assert "\n" not in message
    assert "_log_step moved most" in message  # its rate is the absurd one
    assert f"step {error.log[-1]['step']}: the loss is " in message
    assert len(error.log) < 20
    assert error.log == told
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.log) == (message, error.log)


def watched(*loss: float) -> int:
    """Steps that pass until the training ends, of so many with these losses."""
    plan = distillation._Plan(len(loss), 0.06, 0.05, None, "kl", 1, 4.0, False)
    watch = distillation._Watch(nn.Linear(1, 1), plan, None)
    try:
        for step, value in enumerate(loss):
            watch.add({"step": step + 1, "loss": value, "lr": 1.0}, 1)
        watch.finish()
    except qat.DivergenceError as error:
        return len(error.log)
    return len(loss)


def test_a_few_strange_steps_end_no_training() -> None:
    """What counts is the median of 5 steps beside the lowest one of 20."""
    assert watched(*[1.0] * 20, 1e3, 1e3, *[1.0] * 20) == 42
    assert watched(*[1.0] * 20, *[1e3] * 9) == 23
    assert watched(*[1.0] * 20, *[4.0] * 20) == 40
    assert watched(*[1.0] * 20, *[4.1] * 20) == 23
    # One step that went too well is no measure of the others: nine of 20 are not.
    assert watched(*[1.0] * 11, *[1e-3] * 9, *[1.0] * 20) == 40
    assert watched(*[1.0] * 9, *[1e-3] * 11, *[1.0] * 20) == 23
    assert watched(1.0, *[3.9] * 30) == 31
    assert watched(1.0, *[4.1] * 30) == 3  # the median of two steps is between them


def test_a_loss_that_is_no_number_ends_the_training() -> None:
    teacher, student = tiny.build("gemma3"), tiny.build("gemma3")
    qat.prepare(student)
    teacher.model.norm.weight.data[0] = torch.nan
    with pytest.raises(qat.DivergenceError, match="step 1: the loss is nan"):
        qat.distill(student, teacher, [IDS], steps=3)


def test_bfloat16_models_train_float32_weights() -> None:
    teacher = tiny.build("e2b").bfloat16()
    student = copy.deepcopy(teacher)
    qat.ptq(student, "mobile", [IDS], embeddings=True, per_layer=True)
    weights = {p.dtype for p in student.parameters() if p.requires_grad}
    assert weights == {torch.float32}
    before = qat.compare(student, teacher, IDS)["kl"]
    qat.distill(student, teacher, [IDS], steps=12, **RATES)
    assert qat.compare(student, teacher, IDS)["kl"] < 0.6 * before
    with torch.no_grad():
        assert student(input_ids=IDS).logits.dtype == torch.bfloat16


# ---- where it runs


def test_it_takes_nothing_of_the_core() -> None:
    # So that it also runs where the extension was not built: a machine with a GPU.
    code = f"""
import sys, types
package = types.ModuleType("halfbyte")
package.__path__ = [{str(PACKAGE)!r}]
sys.modules["halfbyte"] = package
import halfbyte.qat
print(sorted(name for name in sys.modules if name.startswith("halfbyte.")))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    )
    loaded = json.loads(done.stdout.replace("'", '"'))
    assert {name for name in loaded if not name.startswith("halfbyte.qat")} == {
        "halfbyte._arguments",
        "halfbyte.errors",
        "halfbyte.origin",
        "halfbyte.sidecars",
    }


@pytest.mark.parametrize("missing", ["torch", "transformers"])
def test_without_the_extra_it_is_named(missing: str) -> None:
    code = f"""
import sys
sys.modules[{missing!r}] = None
import halfbyte
try:
    import halfbyte.qat
except ImportError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    )
    assert "halfbyte.qat needs torch, transformers and safetensors" in done.stdout
    assert done.stdout.endswith('run pip install "halfbyte[transformers]"\n')
