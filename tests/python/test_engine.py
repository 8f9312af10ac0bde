# tests/python/test_engine.py
# The engine behind Transformers' generate, beside Transformers' own forward pass.
# SPDX-License-Identifier: Apache-2.0
"""The engine behind Transformers' generate, beside Transformers' own forward pass.

Logits are held to the bounds of `test_logits.py`: 2e-4 of the largest against
Transformers, 1e-5 between two ways to compute one thing here. Tokens are compared up to
the first choice that noise could turn. Noise alone, without mistakes to tell from it, is
5e-6 on the tiny models, and two logits may be off by that: a margin of 2e-5 is safe, and
`same` sees to it that nearly every choice has it.
"""

from __future__ import annotations

import copy
import functools
import pickle
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf
import halfbyte
import mobile
import numpy as np
import peft
import pytest
import tiny
import torch
import transformers
from halfbyte import errors
from halfbyte.torch._dispatch import num_threads
from halfbyte.transformers import EngineModel, SessionCache, engine, sessions
from halfbyte.transformers.draw import draw_among_few
from halfbyte.transformers.sessions import CACHE_NAME
from transformers import CONFIG_MAPPING

NOISE, CLOSE = 2e-4, 1e-5
IDS = tiny.prompt(20)
LONG = tiny.prompt(1000, seed=2)  # past what a sliding layer keeps: 3 pages of 256

Make = Callable[..., Path]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    made: dict[tuple[str, torch.dtype], Path] = {}

    def folder(name: str, dtype: torch.dtype = torch.float32) -> Path:
        if (name, dtype) not in made:
            path = tmp_path_factory.mktemp(name)
            made[name, dtype] = tiny.save_hf(tiny.talkative(name), path, dtype=dtype)
        return made[name, dtype]

    return folder


@pytest.fixture(scope="module")
def original() -> Any:
    return tiny.talkative("e2b")


@pytest.fixture(scope="module")
def fast(folders: Make) -> EngineModel:
    return engine(folders("e2b"))


@pytest.fixture(scope="module")
def tokenizer(folders: Make) -> Any:
    return transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(folders("e2b") / "tokenizer.json"),
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        padding_side="left",
    )


def rows(*prompts: list[int]) -> dict[str, torch.Tensor]:
    """Prompts padded on the left."""
    length = max(map(len, prompts))
    padded = [[0] * (length - len(ids)) + ids for ids in prompts]
    mask = [[0] * (length - len(ids)) + [1] * len(ids) for ids in prompts]
    return {"input_ids": torch.tensor(padded), "attention_mask": torch.tensor(mask)}


def distance(logits: Any, reference: Any) -> float:
    logits, reference = np.asarray(logits), np.asarray(reference)
    assert logits.shape == reference.shape
    return float(np.abs(logits - reference).max() / np.abs(reference).max())


def same(model: Any, ours: torch.Tensor, theirs: torch.Tensor, prompt: int) -> None:
    """Compare greedy sequences of `model` up to a choice that noise could turn."""
    compared = 0
    for one, two in zip(ours.tolist(), theirs.tolist(), strict=True):
        logits = tiny.reference_logits(model, two)[prompt - 1 : -1]
        top = np.sort(logits, -1)[:, -2:]
        sure = top[:, 1] - top[:, 0] > 2 * CLOSE * np.abs(logits).max()
        stop = prompt + (len(sure) if sure.all() else int(sure.argmin()))
        assert one[:stop] == two[:stop]
        compared += stop - prompt
    assert compared >= 0.8 * (theirs.shape[1] - prompt) * len(theirs)


# --- Logits ----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", tiny.NAMES)
def test_logits(name: str, dtype: torch.dtype, folders: Make) -> None:
    model = tiny.talkative(name)
    if dtype == torch.bfloat16:
        model = tiny.rounded(model)
    fast = engine(folders(name, dtype))
    out = fast(torch.tensor([IDS]))
    assert out.logits.dtype == torch.float32
    assert distance(out.logits[0], tiny.reference_logits(model, IDS)) <= NOISE
    assert out.past_key_values.get_seq_length() == len(IDS)


def test_logits_in_pieces(fast: Any) -> None:
    ids, whole = torch.tensor([IDS]), fast(torch.tensor([IDS])).logits
    first = fast(ids[:, :7])
    second = fast(ids[:, 7:], cache=first.past_key_values)
    assert second.past_key_values is first.past_key_values
    pieces = torch.cat([first.logits, second.logits], 1)
    assert distance(pieces, whole) <= CLOSE
    assert fast(ids, use_cache=False).past_key_values is None
    logits, cache = fast(ids, return_dict=False)
    assert torch.equal(logits, whole)
    assert cache.batch_size == 1


def test_logits_of_some_columns(fast: Any) -> None:
    ids, whole = torch.tensor([IDS]), fast(torch.tensor([IDS])).logits
    for keep in (1, 5, len(IDS), 99):
        kept = fast(ids, logits_to_keep=keep).logits
        assert distance(kept, whole[:, -keep:]) <= CLOSE
    at = torch.tensor([3, 0])
    assert torch.equal(fast(ids, logits_to_keep=at).logits, whole[:, at])


def test_loss(fast: Any, original: Any) -> None:
    ids, labels = torch.tensor([IDS]), torch.tensor([[-100] * 5 + IDS[5:]])
    with torch.no_grad():
        wanted = original(ids, labels=labels).loss
    # A loss moves by at most twice what its logits do, and those by NOISE * 30.
    assert abs(fast(ids, labels=labels).loss - wanted) <= 2 * NOISE * 30


def test_a_loss_is_divided_as_a_trainer_says(fast: Any) -> None:
    ids, labels = torch.tensor([IDS]), torch.tensor([[-100] * 5 + IDS[5:]])
    mean = fast(ids, labels=labels).loss
    shared = fast(ids, labels=labels, num_items_in_batch=3 * len(IDS[5:])).loss
    torch.testing.assert_close(shared, mean / 3)


def test_loss_beside_the_logits_of_some_columns(fast: Any) -> None:
    """The loss is that of all columns, whichever logits are asked for."""
    ids, labels = torch.tensor([IDS]), torch.tensor([[-100] * 5 + IDS[5:]])
    whole = fast(ids, labels=labels)
    for keep in (1, 5, len(IDS), 99, torch.tensor([3, 0])):
        some = fast(ids, labels=labels, logits_to_keep=keep)
        at = keep if isinstance(keep, torch.Tensor) else slice(-keep, None)
        assert torch.equal(some.loss, whole.loss)
        assert torch.equal(some.logits, whole.logits[:, at])


def test_padding_on_the_left(fast: Any) -> None:
    batch = rows(IDS[:12], IDS, IDS[:1])
    logits = fast(**batch).logits
    assert not logits[0, :8].any()
    assert distance(logits[0, 8:], fast(torch.tensor([IDS[:12]])).logits[0]) <= CLOSE
    assert distance(logits[1], fast(torch.tensor([IDS])).logits[0]) <= CLOSE
    assert distance(logits[2, -1:], fast(torch.tensor([IDS[:1]])).logits[0]) <= CLOSE


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_default_types_and_devices_have_no_say(dtype: torch.dtype, fast: Any) -> None:
    batch = rows(IDS, IDS[:5])
    wanted = fast(**batch).logits
    torch.set_default_dtype(dtype)
    try:
        found = fast(**batch).logits
    finally:
        torch.set_default_dtype(torch.float32)
    assert found.dtype == torch.float32
    assert torch.equal(found, wanted)
    with torch.device("meta"):
        assert torch.equal(fast(**batch).logits, wanted)


def test_a_row_may_begin_in_a_later_piece(fast: Any) -> None:
    batch = rows(IDS[:5], IDS)
    ids, mask, whole = *batch.values(), fast(**batch).logits
    cache = fast(ids[:, :10], attention_mask=mask[:, :10]).past_key_values
    rest = fast(ids[:, 10:], attention_mask=mask, past_key_values=cache).logits
    assert distance(rest, whole[:, 10:]) <= CLOSE


# --- The cache -------------------------------------------------------------------------


@pytest.mark.parametrize("cut", [1, 3, 999])
def test_cropping(tiny_gguf: Make, cut: int) -> None:
    # A short cut goes on from the session; a long one, past what sliding layers keep,
    # runs the beginning again.
    model = engine(tiny_gguf("e2b", context=2000))
    ids = torch.tensor([LONG])
    cache = model(ids, logits_to_keep=1).past_key_values
    cache.crop(-cut)
    assert cache.get_seq_length() == 1000 - cut
    other = torch.tensor([[300, 301]])
    got = model(other, past_key_values=cache).logits
    fresh = model(torch.cat([ids[:, :-cut], other], 1), logits_to_keep=2).logits
    assert distance(got, fresh) <= CLOSE


def test_what_assistants_of_older_transformers_are_asked_for(fast: Any) -> None:
    # Newer ones do not know the name, and refuse to make such a configuration.
    for name, may in (("dynamic", True), ("dynamic_full", True), ("static", False)):
        reason = fast._cannot(None, None, {"cache_implementation": name})
        assert (reason is None) == may


def test_cropping_into_padding(fast: Any) -> None:
    batch = rows(IDS[:3], IDS)
    cache = fast(**batch).past_key_values
    cache.crop(0)
    cache.crop(-10)
    assert cache.get_seq_length() == 10
    mask = torch.cat([batch["attention_mask"][:, :10], torch.ones(2, 2)], 1)
    more = torch.tensor([[300, 301], [302, 303]])
    got = fast(more, attention_mask=mask, past_key_values=cache).logits
    assert distance(got[0], fast(more[:1]).logits[0]) <= CLOSE
    whole = torch.tensor([[*IDS[:10], 302, 303]])
    assert distance(got[1], fast(whole).logits[0, -2:]) <= CLOSE
    with pytest.raises(errors.ArgumentError, match="tokens_to_remove: expected 0 or"):
        cache.crop(1)


def test_cropping_where_caches_take_the_length_that_stays(
    fast: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What transformers up to 5.10 does between two rounds of assisted generation.
    monkeypatch.setattr(sessions, "_CROPS_TO_A_LENGTH", True)
    ids = torch.tensor([IDS])
    cache = fast(ids).past_key_values
    for length, left in ((999, 20), (12, 12), (-2, 10)):
        cache.crop(length)
        assert cache.get_seq_length() == left
    rest = fast(ids[:, 10:], past_key_values=cache).logits
    assert distance(rest, fast(ids).logits[:, 10:]) <= CLOSE
    cache.crop(0)
    assert cache.get_seq_length() == 0


def test_rows_are_chosen_and_copied(fast: Any) -> None:
    prompts = [tiny.prompt(8, seed) for seed in range(3)]
    cache = fast(torch.tensor(prompts)).past_key_values
    cache.reorder_cache(torch.tensor([2, 2, 0]))
    more = torch.tensor([[300], [301], [302]])
    got = fast(more, past_key_values=cache).logits
    for at, (row, token) in enumerate([(2, 300), (2, 301), (0, 302)]):
        fresh = fast(torch.tensor([[*prompts[row], token]])).logits[:, -1]
        assert distance(got[at], fresh) <= CLOSE
    cache.batch_select_indices(torch.tensor([True, False, True]))
    cache.batch_repeat_interleave(2)
    assert cache.batch_size == 4
    got = fast(torch.tensor([[310], [311], [312], [313]]), past_key_values=cache).logits
    fresh = fast(torch.tensor([[*prompts[0], 302, 313]])).logits[0, -1:]
    assert distance(got[3], fresh) <= CLOSE


def test_an_empty_cache(fast: Any) -> None:
    cache = SessionCache(fast.core)
    assert (cache.batch_size, cache.get_seq_length()) == (-1, 0)
    assert cache.get_max_length() == fast.core.context
    assert len(cache) == fast.core.config.num_layers
    cache.crop(-3)
    cache.reorder_cache(torch.tensor([0]))
    fast(torch.tensor([IDS]), past_key_values=cache)
    cache.reset()
    again = fast(torch.tensor([IDS, IDS]), past_key_values=cache).logits
    assert distance(again[0], fast(torch.tensor([IDS])).logits[0]) <= CLOSE


def test_beams_run_their_prompt_once(fast: Any, monkeypatch: Any) -> None:
    ran: list[int] = []
    logits = halfbyte.Session.logits

    def counted(self: Any, ids: Any, **options: Any) -> Any:
        ran.append(len(ids))
        return logits(self, ids, **options)

    monkeypatch.setattr(halfbyte.Session, "logits", counted)
    out = fast(torch.tensor([IDS, IDS, IDS[::-1], IDS])).logits
    assert ran == [20, 20]
    assert torch.equal(out[3], out[0])


@pytest.mark.parametrize("before", [0, 5])
def test_interruption_leaves_the_rows_as_they_were(
    fast: Any, monkeypatch: Any, before: int
) -> None:
    ids = torch.tensor([IDS, tiny.prompt(20, seed=1)])
    cache = SessionCache(fast.core)
    if before:
        fast(ids[:, :before], past_key_values=cache)
    logits, calls = halfbyte.Session.logits, [0]

    def interrupted(self: Any, *args: Any, **options: Any) -> Any:
        out = logits(self, *args, **options)
        calls[0] += 1
        if calls[0] == 2:
            raise KeyboardInterrupt
        return out

    with monkeypatch.context() as patch:
        patch.setattr(halfbyte.Session, "logits", interrupted)
        with pytest.raises(KeyboardInterrupt):
            fast(ids[:, before:], past_key_values=cache)
    assert cache.get_seq_length() == before
    got = fast(ids[:, before:], past_key_values=cache).logits
    assert distance(got, fast(ids).logits[:, before:]) <= CLOSE


# --- generate --------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "during"), [(1, 1), (2, 2)])
def test_torch_stands_aside_for_a_single_row(
    fast: Any, count: int, during: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, ours = [], []
    logits = halfbyte.Session.logits

    def counted(self: Any, *args: Any, **options: Any) -> Any:
        ours.append(halfbyte.num_threads())
        return logits(self, *args, **options)

    def watch(_: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        seen.append(torch.get_num_threads())
        if len(seen) == 3:
            raise InterruptedError
        return scores

    ids = torch.tensor(count * [IDS])
    options = {"max_new_tokens": 4, "do_sample": False, "logits_processor": [watch]}
    monkeypatch.setattr(halfbyte.Session, "logits", counted)
    torch.set_num_threads(2)
    want = num_threads()  # torch's, if nothing else was asked for
    try:
        with pytest.raises(InterruptedError):
            fast.generate(ids, attention_mask=torch.ones_like(ids), **options)
        assert seen == 3 * [during]
        assert set(ours) == {want}
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


def test_torch_has_all_threads_in_a_thread_that_begins_meanwhile(fast: Any) -> None:
    ids, options = torch.tensor([IDS]), {"max_new_tokens": 2, "do_sample": False}
    seen: list[int] = []

    def newcomer() -> None:
        torch.ones(300, 300) @ torch.ones(300, 300)  # takes the number of new threads
        seen.append(torch.get_num_threads())

    def watch(_: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        thread = threading.Thread(target=newcomer)
        thread.start()
        thread.join()
        return scores

    torch.set_num_threads(2)
    try:
        fast.generate(ids, logits_processor=[watch], **options)
        assert seen == [2, 2]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


def test_torch_has_its_threads_again_after_calls_that_overlap(fast: Any) -> None:
    # The first call ends while the second, which began in it, goes on.
    first, second = threading.Event(), threading.Event()
    ids, options = torch.tensor([IDS]), {"max_new_tokens": 2, "do_sample": False}
    seen: list[int] = []

    def inner(_: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        second.set()
        first.wait(60)
        seen.append(torch.get_num_threads())
        return scores

    def outer(_: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if not second.is_set():
            late.start()
            second.wait(60)
        return scores

    def generate(watch: Any) -> None:
        fast.generate(ids, logits_processor=[watch], **options)

    late = threading.Thread(target=generate, args=(inner,))
    torch.set_num_threads(2)
    try:
        early = threading.Thread(target=generate, args=(outer,))
        early.start()
        early.join()
        first.set()
        late.join()
        assert seen == [1, 1]
        after = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
        after.start()
        after.join()
        assert seen[2:] == [2]
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy])
def test_a_copied_cache_goes_on_by_itself(copied: Any, fast: Any) -> None:
    ids, more = torch.tensor([IDS[:12]]), torch.tensor([IDS[12:]])
    cache = fast(ids).past_key_values
    other = copied(cache)
    want = fast(more, past_key_values=cache).logits
    assert (cache.get_seq_length(), other.get_seq_length()) == (len(IDS), 12)
    assert torch.equal(fast(more, past_key_values=other).logits, want)


@pytest.mark.parametrize("name", tiny.NAMES)
def test_greedy(name: str, folders: Make) -> None:
    model, fast = tiny.talkative(name), engine(folders(name))
    ids = torch.tensor([IDS])
    ours = fast.generate(ids, max_new_tokens=32)
    same(model, ours, model.generate(ids, max_new_tokens=32), 20)
    assert ours.shape == (1, 52)


def test_greedy_beyond_the_window(fast: Any, original: Any) -> None:
    ids = torch.tensor([tiny.prompt(100)])
    ours = fast.generate(ids, max_new_tokens=40)
    same(original, ours, original.generate(ids, max_new_tokens=40), 100)


OPTIONS: dict[str, dict[str, Any]] = {
    "temperature": {"temperature": 0.7, "top_k": 0},
    "top_k": {"top_k": 5},
    "top_p": {"top_p": 0.8},
    "min_p": {"min_p": 0.1},
    "all": {"temperature": 1.3, "top_k": 50, "top_p": 0.9, "repetition_penalty": 1.4},
    "typical": {"typical_p": 0.5},
    "n-grams": {"no_repeat_ngram_size": 2, "bad_words_ids": [[300]]},
    "watermark": {"watermarking_config": transformers.WatermarkingConfig()},
    "beams": {"num_beams": 3},
    "guidance": {
        "guidance_scale": 1.5,
        "negative_prompt_ids": torch.tensor([[2, 300, 301]]),
    },
    "several": {"num_return_sequences": 3},
    "no cache": {"use_cache": False},
    "in pieces": {"prefill_chunk_size": 6},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_sampling(options: dict[str, Any], fast: Any, original: Any) -> None:
    # The same draws from probabilities that agree to 1e-5: a draw that falls between
    # the two was not seen, and would come once in thousands of tokens.
    drawn = []
    for model in (fast, original):
        torch.manual_seed(4)
        ids = torch.tensor([IDS])
        out = model.generate(ids, do_sample=True, max_new_tokens=16, **options)
        drawn.append(out.tolist())
    assert drawn[0] == drawn[1]
    assert len(set(drawn[0][0][20:])) > 8


def test_drawing_among_few_has_the_same_probabilities() -> None:
    # Of `draws` draws with probability p the share is off by sqrt(p (1 - p) / draws), by
    # six times that once in 10^9; 20 tokens are looked at.
    draws = 20000
    generated = transformers.LogitsProcessorList(
        [
            transformers.TemperatureLogitsWarper(0.8),
            transformers.TopKLogitsWarper(20),
            transformers.TopPLogitsWarper(0.9),
            transformers.MinPLogitsWarper(0.02),
        ]
    )
    torch.manual_seed(0)
    scores = torch.randn(1, tiny.VOCAB)
    wanted = generated(None, scores).softmax(-1)[0]
    drawing = draw_among_few(generated)
    assert drawing is not None
    left = drawing(None, scores.expand(draws, -1))
    assert torch.equal(left.exp().sum(-1), torch.ones(draws))
    share = left.exp().mean(0)
    assert ((share - wanted).abs() <= 6 * (wanted * (1 - wanted) / draws).sqrt()).all()
    assert 5 < (wanted > 0).sum() < 20


def test_drawing_among_few(folders: Make, original: Any) -> None:
    fast, ids = engine(folders("e2b"), same_draws=False), torch.tensor([IDS, IDS])
    options = {"do_sample": True, "max_new_tokens": 16}
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(fast.generate(ids, top_k=9, top_p=0.9, **options))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert not torch.equal(drawn[0][0], drawn[0][1])
    # One token is left: as greedy as can be. Without top-k, Transformers draws.
    greedy = fast.generate(ids, max_new_tokens=16)
    assert torch.equal(fast.generate(ids, top_k=1, **options), greedy)
    torch.manual_seed(3)
    ours = fast.generate(ids, top_k=0, **options)
    torch.manual_seed(3)
    assert torch.equal(ours, original.generate(ids, top_k=0, **options))


@pytest.mark.parametrize("same_draws", [True, False])
def test_scores_are_those_of_all_tokens(
    same_draws: bool, folders: Make, original: Any
) -> None:
    """After the filters, as Transformers has them, and what was drawn is among them."""
    fast = engine(folders("e2b"), same_draws=same_draws)
    options = {"do_sample": True, "top_k": 5, "max_new_tokens": 6}
    options |= {"output_scores": True, "output_logits": True}
    found = []
    for model in (fast, original):
        torch.manual_seed(7)
        found.append(
            model.generate(torch.tensor([IDS]), return_dict_in_generate=True, **options)
        )
    ours, theirs = found
    assert torch.equal(ours.sequences, theirs.sequences)
    for kind in ("scores", "logits"):
        pairs = list(zip(ours[kind], theirs[kind], strict=True))
        assert len(pairs) == 6
        for got, want in pairs:
            assert torch.equal(got.isfinite(), want.isfinite())
            kept = want.isfinite()
            assert kept.sum() == (5 if kind == "scores" else tiny.VOCAB)
            assert distance(got[kept], want[kept]) <= NOISE


def test_when_transformers_draws() -> None:
    top_k, top_p = transformers.TopKLogitsWarper(3), transformers.TopPLogitsWarper(0.9)
    typical = transformers.TypicalLogitsWarper(0.9)
    for strange in ([top_p], [top_k, typical], [top_k, top_p, typical], []):
        assert draw_among_few(transformers.LogitsProcessorList(strange)) is None
    assert (
        draw_among_few(transformers.LogitsProcessorList([typical, top_k])) is not None
    )


@pytest.mark.parametrize("name", ["e2b", "26b"])
def test_a_padded_batch(name: str, folders: Make) -> None:
    model, fast = tiny.talkative(name), engine(folders(name))
    prompts = [tiny.prompt(n, seed=n) for n in (5, 17, 1)]
    ours = fast.generate(**rows(*prompts), max_new_tokens=12)
    theirs = model.generate(**rows(*prompts), max_new_tokens=12)
    for at, ids in enumerate(prompts):
        pad = 17 - len(ids)
        same(model, ours[at : at + 1, pad:], theirs[at : at + 1, pad:], len(ids))
    unmasked = rows(*prompts)["input_ids"]  # the mask is told from the padding
    assert torch.equal(fast.generate(unmasked, max_new_tokens=12), ours)


def test_an_end_that_is_also_padding_is_no_padding(fast: Any, original: Any) -> None:
    # As transformers has it: the end of an earlier turn is told from nothing else.
    ids = torch.tensor([[*IDS[:4], 1, *IDS[4:9]]])
    options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 1}
    same(original, fast.generate(ids, **options), original.generate(ids, **options), 10)


def test_the_models_own_configuration_counts_beside_one_that_is_given(
    folders: Make,
) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(folders("e2b"))
    fast, ids = engine(model), torch.tensor([IDS])
    given = transformers.GenerationConfig(max_new_tokens=2)
    model.generation_config.output_hidden_states = True
    model.generation_config.return_dict_in_generate = True
    with pytest.warns(UserWarning, match="output_hidden_states"):
        assert model.generate(ids, generation_config=given).hidden_states
    fast.detach()


@pytest.mark.parametrize("beams", [2, 4])
def test_beams(beams: int, fast: Any, original: Any) -> None:
    batch = rows(IDS, IDS[:9])
    options = {"num_beams": beams, "num_return_sequences": 2, "max_new_tokens": 16}
    options |= {"return_dict_in_generate": True, "output_scores": True}
    ours, theirs = (m.generate(**batch, **options) for m in (fast, original))
    assert torch.equal(ours.sequences, theirs.sequences)
    # Mean log probabilities: a few units at most, each off by twice a logit's noise.
    assert (ours.sequences_scores - theirs.sequences_scores).abs().max() <= 1e-2
    assert isinstance(ours.past_key_values, SessionCache)


# A twin is right nearly always, another model nearly never.
@pytest.mark.parametrize("right", [True, False])
def test_assisted_by_a_model_of_transformers(
    right: bool, fast: Any, original: Any, monkeypatch: Any
) -> None:
    ids, assistant = torch.tensor([IDS]), original if right else tiny.build("gemma3")
    wanted = fast.generate(ids, max_new_tokens=24)
    checked: list[int] = []
    forward = EngineModel.forward

    @functools.wraps(forward)  # generate looks at its parameters
    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        checked.append(kwargs["logits_to_keep"])
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(EngineModel, "forward", counted)
    ours = fast.generate(ids, assistant_model=assistant, max_new_tokens=24)
    assert torch.equal(ours, wanted)
    assert max(checked) > 1
    assert (len(checked) < 12) == right


def test_assisting_a_model_of_transformers(fast: Any, original: Any) -> None:
    ids = torch.tensor([IDS])
    ours = original.generate(ids, assistant_model=fast, max_new_tokens=24)
    same(original, ours, original.generate(ids, max_new_tokens=24), 20)


def test_assisted_sampling(fast: Any, original: Any) -> None:
    drawn = []
    for target, assistant in ((fast, original), (original, fast)):
        torch.manual_seed(1)
        options = {"do_sample": True, "max_new_tokens": 16}
        ids = torch.tensor([IDS])
        drawn.append(target.generate(ids, assistant_model=assistant, **options))
    assert torch.equal(*drawn)


def test_prompt_lookup(fast: Any) -> None:
    ids = torch.tensor([IDS + IDS[1:] + IDS[1:]])
    wanted = fast.generate(ids, max_new_tokens=24)
    looked = fast.generate(ids, max_new_tokens=24, prompt_lookup_num_tokens=4)
    assert torch.equal(looked, wanted)


@pytest.mark.parametrize("name", ["cache", "past_key_values"])
def test_a_conversation_goes_on_in_its_cache(
    name: str, fast: Any, monkeypatch: Any
) -> None:
    # In every release of transformers by either name.
    options = {"max_new_tokens": 8, "return_dict_in_generate": True}
    first = fast.generate(torch.tensor([IDS]), **options)
    ids = torch.cat([first.sequences, torch.tensor([IDS[5:9]])], 1)
    wanted = fast.generate(ids, **options).sequences
    ran: list[int] = []
    logits = halfbyte.Session.logits

    def counted(self: Any, ids: Any, **options: Any) -> Any:
        ran.append(len(ids))
        return logits(self, ids, **options)

    monkeypatch.setattr(halfbyte.Session, "logits", counted)
    past = {name: first.past_key_values}
    again = fast.generate(ids, **past, **options)
    assert torch.equal(again.sequences, wanted)
    assert ran[0] == 5  # the last token generated, and the four new ones
    twice = dict.fromkeys(("cache", "past_key_values"), first.past_key_values)
    with pytest.raises(errors.ArgumentError, match=r"^cache: "):
        fast.generate(ids, **twice)


# --- Where it ends, and how it is shown ------------------------------------------------


def test_it_ends_with_an_end_token(fast: Any) -> None:
    free = fast.generate(torch.tensor([IDS]), max_new_tokens=20)[0].tolist()
    end = free[25]
    out = fast.generate(torch.tensor([IDS]), max_new_tokens=20, eos_token_id=end)
    assert out[0].tolist() == free[: free.index(end, 20) + 1]


def test_it_ends_with_a_stop_string(fast: Any, tokenizer: Any) -> None:
    ids = torch.tensor([IDS])
    free = fast.generate(ids, max_new_tokens=20)[0].tolist()
    at = next(i for i in range(23, 40) if tokenizer.decode(free[i]).strip())
    stop = tokenizer.decode(free[at])
    out = fast.generate(ids, max_new_tokens=20, stop_strings=stop, tokenizer=tokenizer)
    shortest = next(i for i in range(20, 41) if stop in tokenizer.decode(free[20:i]))
    assert out[0].tolist() == free[:shortest]


def test_criteria_and_processors_are_asked(fast: Any) -> None:
    class Six(transformers.StoppingCriteria):  # type: ignore[misc]
        def __call__(self, ids: Any, *_: Any, **__: Any) -> Any:
            return torch.full((len(ids),), ids.shape[1] >= 26)

    def only_even(_: Any, scores: Any) -> Any:
        scores[:, 1::2] = -torch.inf
        return scores

    out = fast.generate(
        torch.tensor([IDS]),
        max_new_tokens=20,
        stopping_criteria=transformers.StoppingCriteriaList([Six()]),
        logits_processor=transformers.LogitsProcessorList([only_even]),
    )
    assert out.shape == (1, 26)
    assert not (out[0, 20:] % 2).any()


def test_streamers(fast: Any, tokenizer: Any, capsys: Any) -> None:
    ids = torch.tensor([IDS])
    out = fast.generate(ids, max_new_tokens=12)
    text = tokenizer.decode(out[0, 20:])
    streamer = transformers.TextStreamer(tokenizer, skip_prompt=True)
    fast.generate(ids, max_new_tokens=12, streamer=streamer)
    assert capsys.readouterr().out == text + "\n"
    pieces = transformers.TextIteratorStreamer(tokenizer, skip_prompt=True)
    options = {"max_new_tokens": 12, "streamer": pieces}
    thread = threading.Thread(target=fast.generate, args=(ids,), kwargs=options)
    thread.start()
    assert "".join(pieces) == text
    thread.join()


def test_pipeline(fast: Any, original: Any, tokenizer: Any, caplog: Any) -> None:
    texts = ["the end of the line", "and", "one in the other"]
    answers = []
    for model in (fast, original):
        pipe = transformers.pipeline(
            "text-generation", model=model, tokenizer=tokenizer
        )
        options = {"batch_size": 2, "max_new_tokens": 10, "do_sample": False}
        answers.append(pipe(texts, return_full_text=False, **options))
    assert answers[0] == answers[1]
    assert all(answer[0]["generated_text"] for answer in answers[0])
    assert "not supported" not in caplog.text


# --- What it is ------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["e2b", "12b", "gemma3"])
def test_configuration_of_a_folder(name: str, folders: Make, tmp_path: Path) -> None:
    fast = engine(folders(name))
    assert fast.config.model_type == tiny.config(name).model_type
    assert fast.config.layer_types == tiny.config(name).layer_types
    assert (fast.device, fast.dtype) == (torch.device("cpu"), torch.float32)
    assert fast.generation_config.eos_token_id == 1
    assert repr(fast) == f"EngineModel({fast.core!r})"
    assert engine(fast.core).core is fast.core
    for file in folders(name).iterdir():
        (tmp_path / file.name).symlink_to(file)
    made = transformers.GenerationConfig(top_k=7, do_sample=True, eos_token_id=[1, 8])
    made.save_pretrained(tmp_path)
    for path in (tmp_path, str(tmp_path / "model.safetensors")):
        config = engine(path).generation_config
        assert (config.top_k, config.eos_token_id) == (7, [1, 8])


def test_a_folder_of_an_architecture_that_transformers_has_not(
    folders: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As the 12B's with transformers 5.5: the engine needs its files alone.
    usual = engine(folders("12b"))
    known = {k: v for k, v in CONFIG_MAPPING.items() if "unified" not in k}
    module = sys.modules["halfbyte.transformers.engine"]
    monkeypatch.setattr(module, "CONFIG_MAPPING", known)
    for file in folders("12b").iterdir():
        (tmp_path / file.name).symlink_to(file)
    made = transformers.GenerationConfig(top_k=7, do_sample=True)
    made.save_pretrained(tmp_path)
    fast = engine(tmp_path)
    assert fast.config.model_type == "gemma4_text"
    assert fast.generation_config.top_k == 7
    for key in ("vocab_size", "hidden_size", "layer_types", "sliding_window"):
        assert getattr(fast.config, key) == getattr(usual.config, key)
    ids = torch.tensor([IDS])
    assert torch.equal(fast(ids).logits, usual(ids).logits)
    assert fast.generate(ids, max_new_tokens=3).shape == (1, 23)


def test_released_layout(tmp_path: Path, original: Any) -> None:
    fast = engine(tiny.save_hf(original, tmp_path, released=True))
    assert fast.config.model_type == "gemma4_text"
    got = fast(torch.tensor([IDS])).logits[0]
    assert distance(got, tiny.reference_logits(original, IDS)) <= NOISE


def test_a_mobile_directory(tmp_path: Path) -> None:
    fast = engine(mobile.save(mobile.build("e2b"), tmp_path, "e2b"))
    assert fast.config.model_type == "gemma4_text"
    out = fast.generate(torch.tensor([IDS]), max_new_tokens=3)[0].tolist()
    for at in range(20, 23):
        assert out[at] == fast.core.logits(out[:at], last=True).argmax()


@pytest.mark.parametrize("name", tiny.NAMES)
def test_gguf(name: str, tiny_gguf: Make) -> None:
    model, fast = tiny.talkative(name), engine(tiny_gguf(name))
    assert fast.name_or_path == str(tiny_gguf(name))
    for key in ("vocab_size", "hidden_size", "layer_types", "sliding_window"):
        assert getattr(fast.config, key) == getattr(model.config, key)
    ids = torch.tensor([IDS])
    same(
        model,
        fast.generate(ids, max_new_tokens=16),
        model.generate(ids, max_new_tokens=16),
        20,
    )


def test_generation_config_of_a_gguf(tmp_path: Path, tiny_gguf: Make) -> None:
    class Writer(gguf.GGUFWriter):  # type: ignore[misc]
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            self.add_float32("general.sampling.temp", 0.5)
            self.add_int32("general.sampling.top_k", 9)

    path = tmp_path / "model.gguf"
    tiny.save_gguf(tiny.build("e2b"), path, writer_class=Writer)
    config = engine(path).generation_config
    assert (config.do_sample, config.temperature, config.top_k) == (True, 0.5, 9)
    assert (config.bos_token_id, config.pad_token_id) == (2, 0)
    ends = ["<eos>", "<turn|>", "<|tool_response>"]
    names = tiny.vocabulary()[0]
    assert config.eos_token_id == sorted(names.index(end) for end in ends)
    mute = engine(tiny_gguf("e2b", tokenizer=False))
    assert not mute.generation_config.do_sample


def test_threads(fast: Any, monkeypatch: Any) -> None:
    seen: list[int] = []
    logits = halfbyte.Session.logits

    def watched(self: Any, *args: Any, **options: Any) -> Any:
        seen.append(self.model.threads)
        return logits(self, *args, **options)

    monkeypatch.setattr(halfbyte.Session, "logits", watched)
    monkeypatch.delenv("HALFBYTE_NUM_THREADS", raising=False)
    halfbyte.set_num_threads(None)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    ids = torch.tensor([IDS])
    fast(ids)
    with halfbyte.threads(2):
        fast(ids)
    engine(halfbyte.load(fast.name_or_path, threads=5))(ids)
    assert seen == [3, 2, 5]


# --- Serving a model of Transformers ---------------------------------------------------


@pytest.fixture
def loaded(folders: Make) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folders("e2b")).eval()


def no_forward(*_: Any, **__: Any) -> Any:
    raise AssertionError("Transformers' own forward pass")


def test_a_loaded_model_generates_with_the_engine(
    loaded: Any, tokenizer: Any, monkeypatch: Any
) -> None:
    ids = torch.tensor([IDS])
    wanted = loaded.generate(ids, max_new_tokens=12)
    fast = engine(loaded)
    with monkeypatch.context() as patch:
        patch.setattr(type(loaded), "forward", no_forward)
        ours = loaded.generate(ids, max_new_tokens=12)
    same(loaded, ours, wanted, 20)
    monkeypatch.setattr(type(loaded), "forward", no_forward)
    loaded.generation_config = transformers.GenerationConfig(max_new_tokens=3)
    assert loaded.generate(ids).shape == (1, 23)
    pipe = transformers.pipeline("text-generation", model=loaded, tokenizer=tokenizer)
    assert pipe("the end", max_new_tokens=4)[0]["generated_text"].startswith("the end")
    assert copy.deepcopy(loaded).generate(ids).shape == (1, 23)
    again = engine(loaded, path=fast.name_or_path)
    fast.detach()  # no longer its engine
    assert loaded.generate(ids).shape == (1, 23)
    again.detach()
    again.detach()
    with pytest.raises(AssertionError, match="Transformers' own"):
        loaded.generate(ids)
    assert "generate" not in vars(loaded)


ASKED: dict[str, Callable[[Any], dict[str, Any]]] = {
    "inputs_embeds": lambda m: {
        "inputs_embeds": m.get_input_embeddings()(torch.tensor([IDS]))
    },
    "output_hidden_states": lambda _: {
        "input_ids": torch.tensor([IDS]),
        "output_hidden_states": True,
        "return_dict_in_generate": True,
    },
    "attention_mask": lambda _: {
        "input_ids": torch.tensor([[*IDS, 0, 0]]),
        "attention_mask": torch.tensor([[1] * 20 + [0] * 2]),
    },
    "StaticCache": lambda m: {
        "input_ids": torch.tensor([IDS]),
        CACHE_NAME: transformers.StaticCache(m.config, max_cache_len=64),
    },
    "static": lambda _: {
        "input_ids": torch.tensor([IDS]),
        "cache_implementation": "static",
    },
}


@pytest.mark.parametrize("name", ASKED)
def test_what_the_engine_cannot_falls_back_with_one_warning(
    name: str, loaded: Any
) -> None:
    wanted = loaded.generate(**ASKED[name](loaded), max_new_tokens=4)
    fast = engine(loaded)
    with pytest.warns(UserWarning, match=f"{name}: .*; Transformers runs this itself"):
        out = loaded.generate(**ASKED[name](loaded), max_new_tokens=4)
    assert torch.equal(*(getattr(x, "sequences", x) for x in (out, wanted)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded.generate(**ASKED[name](loaded), max_new_tokens=4)
    with pytest.raises(errors.UnsupportedError, match=f"^{name}: .*$"):
        fast.generate(**ASKED[name](loaded), max_new_tokens=4)


def test_a_vocabulary_that_changed_falls_back(loaded: Any) -> None:
    engine(loaded)
    loaded.resize_token_embeddings(loaded.config.vocab_size + 8, mean_resizing=False)
    with pytest.warns(UserWarning, match="vocab_size: .*Transformers runs this itself"):
        out = loaded.generate(
            torch.tensor([IDS]),
            max_new_tokens=2,
            output_logits=True,
            return_dict_in_generate=True,
        )
    assert out.logits[0].shape[-1] == loaded.config.vocab_size


def test_adapters_fall_back(loaded: Any) -> None:
    engine(loaded)
    loaded._hf_peft_config_loaded = True
    with pytest.warns(UserWarning, match="adapters: "):
        loaded.generate(torch.tensor([IDS]), max_new_tokens=2)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
def test_so_do_those_of_peft(loaded: Any) -> None:
    ids = torch.tensor([IDS])
    plain = loaded.generate(ids, max_new_tokens=8)
    engine(loaded)
    adapted = peft.get_peft_model(
        loaded, peft.LoraConfig(target_modules=["down_proj"], init_lora_weights=False)
    )
    with pytest.warns(UserWarning, match="adapters: "):
        ours = adapted.generate(input_ids=ids, max_new_tokens=8)
    assert torch.equal(ours, type(loaded).generate(loaded, ids, max_new_tokens=8))
    assert not torch.equal(ours, plain)
    with pytest.raises(errors.ArgumentError, match=r"^model: .* got PeftModel"):
        engine(adapted)


def test_gradients_stay_with_the_model(loaded: Any) -> None:
    engine(loaded)
    loaded(torch.tensor([IDS]), labels=torch.tensor([IDS])).loss.backward()
    assert loaded.get_input_embeddings().weight.grad.any()


# --- Errors ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("named", "kwargs"),
    [
        ("inputs_embeds", {"inputs_embeds": torch.zeros(1, 2, 64)}),
        ("output_attentions", {"output_attentions": True}),
        ("pixel_values", {"pixel_values": torch.zeros(1)}),
        ("mm_token_type_ids", {"mm_token_type_ids": torch.ones(1, 20)}),
        (CACHE_NAME, {"past_key_values": transformers.DynamicCache()}),
        (CACHE_NAME, {"cache": transformers.DynamicCache()}),
        ("cache", dict.fromkeys(("cache", "past_key_values"), 0)),
        ("position_ids", {"position_ids": torch.arange(20)[None] + 1}),
        ("position_ids", {"position_ids": torch.zeros(3, 1, 20)}),
        ("attention_mask", {"attention_mask": torch.tensor([[1] * 19 + [0]])}),
        ("attention_mask", {"attention_mask": torch.ones(1, 19)}),
        ("attention_mask", {"attention_mask": torch.ones(1, 1, 20, 20)}),
    ],
)
def test_what_forward_refuses(named: str, kwargs: dict[str, Any], fast: Any) -> None:
    with pytest.raises(errors.Error, match=f"^{named}: ") as caught:
        fast(torch.tensor([IDS]), **kwargs)
    assert "\n" not in str(caught.value)


def test_copies_and_pickles(fast: Any) -> None:
    twin = copy.deepcopy(fast)
    assert type(twin) is type(fast)
    ids = torch.tensor([IDS])
    assert torch.equal(twin(ids).logits, fast(ids).logits)
    with pytest.raises(errors.UnsupportedError, match="is not pickled: call halfbyte"):
        pickle.dumps(fast)


def test_a_copy_serves_no_model(loaded: Any) -> None:
    fast = engine(loaded)
    copy.deepcopy(fast).detach()
    copy.copy(fast).detach()
    assert "generate" in vars(loaded)
    fast.detach()
    assert "generate" not in vars(loaded)


def test_what_forward_takes(fast: Any) -> None:
    ids, wanted = torch.tensor([IDS]), fast(torch.tensor([IDS])).logits
    options = {
        "position_ids": torch.arange(20)[None],
        "attention_mask": torch.ones(1, 20, dtype=torch.bool),
        "mm_token_type_ids": torch.zeros(1, 20),
        "output_attentions": False,
    }
    assert torch.equal(fast(ids, **options).logits, wanted)


def test_a_cache_that_does_not_fit(fast: Any) -> None:
    batch = rows(IDS[:9], IDS)
    cache, more = fast(**batch).past_key_values, torch.tensor([[300], [301]])
    with pytest.raises(errors.ArgumentError, match="input_ids: expected 2 rows"):
        fast(more[:1], past_key_values=cache)
    with pytest.raises(errors.ArgumentError, match="attention_mask: expected one"):
        fast(more, past_key_values=cache)
    mask = torch.ones(2, 21)
    with pytest.raises(errors.ArgumentError, match="attention_mask: differs"):
        fast(more, attention_mask=mask, past_key_values=cache)
    with pytest.raises(errors.UnsupportedError, match="of this model"):
        engine(fast.name_or_path)(more, past_key_values=cache)
    with pytest.raises(errors.UnsupportedError, match="SessionCache: only an Engine"):
        cache.update(None, None, 0)


def test_ids_and_lengths_out_of_range(fast: Any) -> None:
    with pytest.raises(errors.ArgumentError, match="512"):
        fast(torch.tensor([[2, 512]]))
    with pytest.raises(errors.ArgumentError, match="input_ids: expected some"):
        fast()
    for ids in ([[5.0, 6.0]], [[True, False]]):
        with pytest.raises(errors.DTypeError, match="input_ids: expected integers"):
            fast(torch.tensor(ids))
    with pytest.raises(errors.ShapeError, match=r"input_ids: expected shape \(batch, "):
        fast(torch.tensor(IDS))
    with pytest.raises(
        errors.ArgumentError, match="logits_to_keep: expected 0 or more"
    ):
        fast(torch.tensor([IDS]), logits_to_keep=-1)
    cache = SessionCache(fast.core)
    with pytest.raises(errors.ContextOverflowError):
        fast(torch.tensor([tiny.prompt(257)]), past_key_values=cache)
    fast(torch.tensor([IDS, IDS]), past_key_values=cache)  # still as good as new


@pytest.mark.parametrize("ids", ["hello", ["hello"], [IDS], np.array([IDS]), {"a": 1}])
def test_what_is_no_tensor_of_ids(ids: Any, fast: Any, loaded: Any) -> None:
    engine(loaded)
    wanted = (
        r"^input_ids: expected an integer tensor of shape \(batch, tokens\), got "
        rf"{type(ids).__name__} - tokenizer\(text, return_tensors='pt'\)"
    )
    for call in (fast.generate, fast, loaded.generate):
        for kwargs in ({}, {"input_ids": ids}):
            with pytest.raises(errors.DTypeError, match=wanted) as caught:
                call(*(() if kwargs else (ids,)), **kwargs)
            assert "\n" not in str(caught.value)


def test_what_generate_refuses(fast: Any, loaded: Any) -> None:
    engine(loaded)
    ids = torch.tensor([IDS])
    for model in (fast, loaded):
        with pytest.raises(errors.ShapeError, match=r"^input_ids: expected shape \(b"):
            model.generate(ids[0])
        with pytest.raises(errors.DTypeError, match=r"^input_ids: expected integers"):
            model.generate(ids.float())
        with pytest.raises(
            errors.DTypeError, match=r"^attention_mask: expected a tens"
        ):
            model.generate(ids, attention_mask=[[1] * 20])


def test_it_is_not_for_training(folders: Make, tmp_path: Path) -> None:
    fast = engine(folders("e2b"))
    with pytest.raises(errors.UnsupportedError, match=r"eval\(\)"):
        fast.train()(torch.tensor([IDS]))
    with pytest.raises(errors.UnsupportedError, match="copy its files"):
        fast.save_pretrained(tmp_path)


def test_files_that_do_not_go_with_a_model(
    folders: Make, original: Any, loaded: Any, fast: Any
) -> None:
    with pytest.raises(errors.ArgumentError, match="not loaded from files"):
        engine(tiny.build("e2b"))
    with pytest.raises(
        errors.ArgumentError, match="num_hidden_layers is 7 there and 12"
    ):
        engine(original, path=folders("gemma3"))
    with pytest.raises(errors.ArgumentError, match="path: only a model of"):
        engine(folders("e2b"), path=folders("e2b"))
    with pytest.raises(errors.ArgumentError, match="threads: the model is loaded"):
        engine(fast.core, threads=2)
    with pytest.raises(errors.ArgumentError, match="has an engine"):
        engine(fast)
    loaded.name_or_path = "/gone/model"
    with pytest.raises(FileNotFoundError, match="name the files with path=") as caught:
        engine(loaded)
    assert caught.value.filename == "/gone/model"
    with pytest.raises(FileNotFoundError):
        engine("/gone/model")
