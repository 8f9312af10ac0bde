# tests/python/test_from_gguf.py
# SPDX-License-Identifier: Apache-2.0
"""GGUF files as models and tokenizers of Transformers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import halfbyte
import numpy as np
import pytest
import tiny
import torch
from halfbyte.errors import DTypeError, FormatError, ModelError, UnsupportedError
from halfbyte.torch import QuantEmbedding, QuantLinear
from halfbyte.torch.experts import QuantExperts
from halfbyte.transformers import from_gguf
from transformers import AutoModelForCausalLM
from transformers.utils import logging

IDS = torch.tensor([tiny.prompt(24)])
TEXTS = [
    "",
    " ",
    "\n\n\n",
    "hello  there and\n\nthe end",
    "  in ing   andthe",
    "éü 中文 😀 ☃ \u00a0x",
    "<|turn>user\nx<turn|> <|tool_response>",
]


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """No progress bars, no gradients."""
    logging.disable_progress_bar()
    with torch.no_grad():
        yield
    logging.enable_progress_bar()


def f32(name: str) -> gguf.GGMLQuantizationType:  # noqa: ARG001
    return gguf.GGMLQuantizationType.F32


def decoded(path: Path, source: Any) -> Any:
    """A float model of transformers with the weights that `gguf` decodes."""
    twin = tiny.rounded(source, torch.float32)
    state = twin.model.state_dict()
    plus_one = source.config.model_type == "gemma3_text"
    found = {t.name: t for t in gguf.GGUFReader(path).tensors}
    for name, value in state.items():
        tensor = found.get(tiny.gguf_name(name))
        if tensor is not None:
            array = gguf.dequantize(tensor.data, tensor.tensor_type)
            array = array - 1 if plus_one and "norm" in name else array
            value.copy_(torch.tensor(array).reshape(value.shape))
    twin.tie_weights()
    return twin


@pytest.mark.parametrize("types", [tiny.official_type, tiny.mixed_type, f32])
@pytest.mark.parametrize("name", tiny.NAMES)
def test_logits_are_those_of_the_decoded_weights(
    name: str, types: Any, tmp_path: Path
) -> None:
    """The bound is that of test_quantizer.py: float32 sums in another order."""
    source = tiny.build(name, wide=True)
    path = tiny.save_gguf(source, tmp_path / "m.gguf", types=types)
    model, _ = from_gguf(path, activations="f32", repack="never")
    got, want = model(IDS).logits, decoded(path, source)(IDS).logits
    assert float((got - want).abs().max()) < 2**-13 * float(want.abs().max())


@pytest.mark.parametrize("name", tiny.NAMES)
def test_expanded_to_a_type(name: str, tmp_path: Path) -> None:
    """An ordinary model, of the numbers that `gguf` decodes, every one of them."""
    source = tiny.build(name, wide=True)
    path = tiny.save_gguf(source, tmp_path / "m.gguf", types=tiny.official_type)
    model, _ = from_gguf(path, dtype=torch.float32)
    want = dict(decoded(path, source).named_parameters())
    got = dict(model.named_parameters())
    assert got.keys() == want.keys()
    assert all(torch.equal(got[key], want[key]) for key in want)
    assert not any(isinstance(m, QuantLinear) for m in model.modules())
    half, _ = from_gguf(path, dtype=torch.bfloat16)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize(
    "options",
    [
        {"fused_qkv": True, "dead_kv": True},
        {"split_experts": True, "values_on_k_eq_v": True},
        {"separate_output": True, "arrays": True, "signed": True},
    ],
)
@pytest.mark.parametrize("name", tiny.NAMES)
def test_spellings(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    """Beside halfbyte's own reading of the file, with the same bound."""
    source = tiny.build(name, wide=True)
    path = tiny.save_gguf(
        source, tmp_path / "m.gguf", types=tiny.official_type, **options
    )
    model, _ = from_gguf(path, activations="f32", repack="never")
    got = model(IDS).logits[0]
    want = torch.from_numpy(
        halfbyte.load(path, activations="f32", repack="never").logits(IDS[0].tolist())
    )
    assert float((got - want).abs().max()) < 2**-13 * float(want.abs().max())
    dense = from_gguf(path, dtype=torch.float32)[0](IDS).logits[0]
    assert float((dense - want).abs().max()) < 2**-13 * float(want.abs().max())


def test_rope_scaling_of_gemma3(tmp_path: Path) -> None:
    source = tiny.build("gemma3", wide=True, rope_factor=8.0)
    path = tiny.save_gguf(source, tmp_path / "m.gguf", types=f32)
    model, _ = from_gguf(path, activations="f32", repack="never")
    got, want = model(IDS).logits, source(IDS).logits
    assert float((got - want).abs().max()) < 2**-13 * float(want.abs().max())


def test_bytes_lie_in_the_file_and_writes_do_not_reach_it(tmp_path: Path) -> None:
    path = tiny.save_gguf(
        tiny.build("e2b", wide=True), tmp_path / "m.gguf", types=tiny.official_type
    )
    before = path.read_bytes()
    model, _ = from_gguf(path, repack="never")
    table = model.get_input_embeddings()
    assert isinstance(table, QuantEmbedding)
    shared = table.embedding_quantized.data_ptr()
    assert model.lm_head.weight.data_ptr() == shared
    mapped = [
        [int(at, 16) for at in line.split()[0].split("-")]
        for line in Path("/proc/self/maps").read_text().splitlines()
        if line.endswith(str(path))
    ]
    for module in model.modules():
        if isinstance(module, QuantLinear):
            at = module.weight.data_ptr()
            assert any(low <= at < high for low, high in mapped)
    model.model.layers[0].mlp.up_proj.weight.zero_()
    assert path.read_bytes() == before


def test_saved_and_loaded_again_is_bit_equal(tmp_path: Path) -> None:
    path = tiny.save_gguf(
        tiny.build("26b", wide=True), tmp_path / "m.gguf", types=tiny.mixed_type
    )
    model, _ = from_gguf(path, repack="never")
    assert any(isinstance(m, QuantExperts) for m in model.modules())
    model.save_pretrained(tmp_path / "saved")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert torch.equal(model(IDS).logits, again(IDS).logits)


# ---- tokenizers


@pytest.mark.parametrize("name", ["gemma3", "e2b"])
def test_tokenizer_gives_the_same_ids(name: str, tmp_path: Path) -> None:
    template = "{{ bos_token }}{{ messages[0]['content'] }}"
    path = tiny.save_gguf(tiny.build(name, wide=True), tmp_path / "m.gguf", types=f32)
    model, fast = from_gguf(path, repack="never")
    ours = halfbyte.Tokenizer.from_gguf(path)
    for text in TEXTS:
        ids = fast(text).input_ids
        assert ids == ours.encode(text, special=True), text
        assert fast.decode(ids, skip_special_tokens=True) == ours.decode(ids), text
    assert fast.padding_side == "left"
    assert fast.chat_template is None
    fast.chat_template = template
    assert fast.pad_token_id == 0
    assert model.generation_config.eos_token_id == [1, 6, 7]
    assert (model.config.bos_token_id, model.config.pad_token_id) == (2, 0)


def test_the_files_sampling_is_taken_along() -> None:
    path = Path(halfbyte.__file__).parent / "data/tiny-q4_0.gguf"
    wanted = halfbyte.load(path).sampling
    assert wanted
    model, _ = from_gguf(path)
    assert model.generation_config.do_sample
    assert {key: getattr(model.generation_config, key) for key in wanted} == wanted


def test_a_type_may_be_a_name(tmp_path: Path) -> None:
    path = tiny.save_gguf(tiny.build("gemma3"), tmp_path / "m.gguf", types=f32)
    model, _ = from_gguf(path, dtype="bfloat16")
    assert model.dtype == torch.bfloat16
    with pytest.raises(DTypeError, match=r"^dtype: expected a torch\.dtype, got str"):
        from_gguf(path, dtype="auto")


# ---- what is refused


@pytest.mark.parametrize("name", ["gemma3", "e2b"])
def test_what_is_saved_is_a_model_for_halfbyte_too(name: str, tmp_path: Path) -> None:
    path = tiny.save_gguf(tiny.build(name), tmp_path / "m.gguf", types=f32)
    model, fast = from_gguf(path, dtype=torch.float32)
    model.save_pretrained(tmp_path / "saved")
    fast.save_pretrained(tmp_path / "saved")
    loaded, first = halfbyte.load(tmp_path / "saved"), halfbyte.load(path)
    for text in TEXTS:
        assert loaded.tokenize(text) == first.tokenize(text)
    got, want = loaded.logits(IDS[0].numpy()), first.logits(IDS[0].numpy())
    np.testing.assert_array_equal(got, want)


def test_a_file_without_a_tokenizer(tmp_path: Path) -> None:
    path = tiny.save_gguf(
        tiny.build("gemma3", wide=True), tmp_path / "m.gguf", types=f32, tokenizer=False
    )
    with pytest.raises(UnsupportedError, match="expected a tokenizer"):
        from_gguf(path)


def test_damage_is_found_first(tmp_path: Path) -> None:
    path = tiny.save_gguf(
        tiny.build("e2b", wide=True),
        tmp_path / "m.gguf",
        types=f32,
        without_tensors={"blk.1.ffn_up.weight"},
    )
    with pytest.raises(ModelError, match=r"blk\.1\.ffn_up\.weight"):
        from_gguf(path)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(FormatError):
        from_gguf(path)
