# tests/python/test_tiny_model.py
# SPDX-License-Identifier: Apache-2.0
"""The small model of the package: found by name, and the same to every reader.

What it was made of and how well it did against its unquantized form is in examples/qat.
Here its two files are taken as they are installed: what they hold, what the model says,
and that Transformers and llama.cpp read the same in them.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import warnings
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import halfbyte
import numpy as np
import pytest
import tiny
import torch
from halfbyte import _core, bundled, errors, names, qat
from halfbyte.lineage import Verdict, lineage
from halfbyte.transformers import from_gguf
from numpy.typing import NDArray
from test_mobile import KINDS, noise
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.integrations import gemma_quant

F32 = NDArray[np.float32]

# What `examples/qat/corpus.py` teaches it by heart.
GREETED = "Good day to you. Ask me what a word means, or for a verse or a speech."
VERSE = (
    "And God said, Let there be light: and there was light. And God saw the light, "
    "that it was good: and God divided the light from the darkness."
)
TEXTS = (
    VERSE,
    "  Ere\n\n\nthou\tart",
    "na\u00efve \u4e2d \U0001f600",
    "<|turn>user\nHi<turn|>",
)
WORDS = ("kindness", "horse", "to walk", "anger", "river", "to sing", "law", "stone")


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.delenv("HALFBYTE_ACTIVATIONS", raising=False)


@pytest.fixture(scope="module", params=["tiny", "tiny-mobile"])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def ask(model: Any, text: str, tokens: int = 48) -> str:
    answer = model.chat([{"role": "user", "content": text}], max_tokens=tokens)
    return str(answer.text)


# ---- names


def test_the_package_brings_both() -> None:
    inside = [str(path) for path in metadata.files("halfbyte") or ()]
    data = {path.partition("/data/")[2] for path in inside if "/data/" in path}
    folders = {"tiny-mobile", "tiny-drafter"}
    inside_of = {f"{name}/model.safetensors" for name in folders}
    assert {"tiny-q4_0.gguf"} | inside_of <= data
    found = bundled.locate("tiny").stat().st_size
    for name in folders:
        found += sum(file.stat().st_size for file in bundled.locate(name).iterdir())
    assert found < 10e6


@pytest.mark.parametrize("prefix", ["", "halfbyte:"])
def test_names_lead_into_the_package(
    prefix: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert not names.is_path(prefix + name)
    found = names.resolve(prefix + name)
    assert found == Path(halfbyte.__file__).parent / "data" / bundled.MODELS[name]
    assert found.exists()


def test_a_path_wins_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("tiny").mkdir()
    assert names.is_path("tiny")
    with pytest.warns(UserWarning, match="halfbyte:tiny is the model of the package"):
        assert names.resolve("tiny") == Path("tiny")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert names.resolve("./tiny") == Path("tiny")
        assert names.resolve(Path("tiny")) == Path("tiny")
        assert names.resolve("halfbyte:tiny").is_file()
        assert names.resolve("tiny-mobile").is_dir()


@pytest.mark.parametrize("wrong", ["halfbyte:", "halfbyte:small", "halfbyte:tiny/x"])
def test_other_names_are_refused(wrong: str) -> None:
    with pytest.raises(errors.ArgumentError, match="expected halfbyte:tiny or half"):
        halfbyte.load(wrong)
    with pytest.raises(errors.ArgumentError, match="revision: tiny is no repository"):
        halfbyte.load("tiny", revision="main")


def test_a_broken_installation_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundled, "_DATA", tmp_path)
    with pytest.raises(FileNotFoundError, match="install it again") as caught:
        halfbyte.load("tiny")
    assert "\n" not in str(caught.value)


# ---- the command, where nothing else is installed

PLAIN = """
import sys
for name in ("torch", "transformers", "tokenizers", "safetensors", "huggingface_hub"):
    sys.modules[name] = None  # importing it fails, as where it is not installed
from halfbyte.cli import main
sys.exit(main())
"""


def command(folder: Path, *args: str, stdin: str = "") -> Any:
    done = subprocess.run(
        [sys.executable, "-c", PLAIN, *args],
        input=stdin,
        check=False,
        capture_output=True,
        text=True,
        cwd=folder,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done


def test_run_with_no_extra(name: str, tmp_path: Path) -> None:
    done = command(tmp_path, "run", name, "Hello!", "--temp", "0", "--quiet")
    assert done.stdout == GREETED + "\n"
    assert done.stderr == ""


def test_chat_with_no_extra(name: str, tmp_path: Path) -> None:
    lines = "Hello!\nThank you.\n"
    done = command(tmp_path, "chat", name, "--temp", "0", "--quiet", stdin=lines)
    assert done.stdout.splitlines() == [GREETED, "You are most welcome. Fare you well."]


def test_the_command_says_which_of_two_it_takes(tmp_path: Path) -> None:
    (tmp_path / "tiny").write_bytes(bundled.locate("tiny").read_bytes())
    done = command(tmp_path, "run", "tiny", "Hello!", "--temp", "0")
    assert done.stdout == GREETED + "\n"
    assert done.stderr.count("tiny is a file or folder here and is taken") == 1
    done = command(tmp_path, "run", "halfbyte:tiny", "Hello!", "--temp", "0")
    assert "is taken" not in done.stderr


# ---- what it says


@pytest.fixture(scope="module")
def model(name: str) -> Any:
    return halfbyte.load(name, threads=1)


def test_logits_are_finite(model: Any) -> None:
    logits = model.logits(model.tokenize(VERSE))
    assert logits.shape[1] == 4096
    assert np.isfinite(logits).all()
    assert logits.std() > 1


@pytest.mark.parametrize("hello", ["Hello!", "Good morning.", "How do you do?"])
def test_it_greets(model: Any, hello: str) -> None:
    assert ask(model, hello) == GREETED


def test_logits_are_the_same_for_any_number_of_threads(name: str, model: Any) -> None:
    ids = model.tokenize(VERSE)
    two = halfbyte.load(name, threads=2)
    np.testing.assert_array_equal(model.logits(ids), two.logits(ids))


def test_it_answers_as_a_dictionary(model: Any) -> None:
    # A head word, its part of speech, and a sense: "Horse, n. 1. A ...".
    entry = re.compile(r"[A-Z][A-Za-z' -]*, (n|a|adv|v\. [ti]|prep)\. (1\. )?[A-Z]")
    answers = [ask(model, f"What does {word} mean?", 24) for word in WORDS]
    found = [bool(entry.match(answer)) for answer in answers]
    assert sum(found) >= len(WORDS) - 2, answers


def test_it_knows_the_style_of_what_it_read(model: Any) -> None:
    backwards = " ".join(reversed(VERSE.split()))
    forwards, backwards = (
        model.perplexity(model.tokenize(text)) for text in (VERSE, backwards)
    )
    assert forwards < 30
    assert backwards > 10 * forwards


# ---- what the files hold


def test_all_matrices_are_q4_0() -> None:
    file = halfbyte.open_gguf(bundled.locate("tiny"))
    matrices = {t.name: t.format for t in file.tensors if len(t.shape) == 2}
    # Kept in float16, as in the releases.
    assert matrices.pop("per_layer_model_proj.weight") == "f16"
    assert len(matrices) > 60
    assert {fmt.lower() for fmt in matrices.values()} == {"q4_0"}
    assert file.metadata["general.name"] == "halfbyte-tiny"


def test_nothing_tells_where_it_was_made() -> None:
    config = json.loads((bundled.locate("tiny-mobile") / "config.json").read_text())
    assert "_name_or_path" not in config
    assert config["quantization_config"]["quant_method"] == "gemma"


def test_lineage_claims_nothing_it_cannot_see() -> None:
    found = lineage(halfbyte.open_gguf(bundled.locate("tiny")))
    assert found.verdict in (Verdict.UNKNOWN, Verdict.OTHER), found.reason


def test_one_tokenizer_in_both_files() -> None:
    ours = halfbyte.load("tiny").tokenizer
    theirs = AutoTokenizer.from_pretrained(bundled.locate("tiny-mobile"))
    for text in TEXTS:
        ids = theirs.encode(text, add_special_tokens=False)
        plain = theirs.decode(ids, skip_special_tokens=True)
        assert ours.encode(text, bos=False, special=True) == ids
        assert ours.decode(ids) == plain


def test_the_template_is_that_of_its_training(name: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(bundled.locate("tiny-mobile"))
    talk = [
        {"role": "user", "content": "Hello!"},
        {"role": "assistant", "content": GREETED},
        {"role": "user", "content": "What does kindness mean?"},
    ]
    text = tokenizer.apply_chat_template(
        talk, tokenize=False, add_generation_prompt=True
    )
    assert text == (
        f"<bos><|turn>user\nHello!<turn|>\n<|turn>model\n{GREETED}<turn|>\n"
        "<|turn>user\nWhat does kindness mean?<turn|>\n<|turn>model\n"
    )
    expected = tokenizer.encode(text, add_special_tokens=False)
    assert halfbyte.load(name)._prompt_ids(talk, None, False) == expected


# ---- how they are made


def pack(student: Path, out: Path) -> Any:
    script = Path(__file__).parents[2] / "examples" / "qat" / "pack.py"
    words = map(str, (script, student, bundled.locate("tiny-mobile"), out))
    return subprocess.run(
        [sys.executable, *words],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_packing_takes_trained_weights_and_no_others(tmp_path: Path) -> None:
    plain = tiny.rounded(tiny.build("e2b", wide=True))
    source = tiny.save_hf(plain, tmp_path / "plain")
    qat.ptq(plain, "q4_0", [], embeddings=True, per_layer=True)
    student = qat.export(plain, tmp_path / "student", tokenizer=source)
    out = tmp_path / "out"
    done = pack(student, out)
    assert done.returncode == 0, done.stderr
    packed = out / "tiny-q4_0.gguf"
    assert halfbyte.open_gguf(packed).metadata["general.name"] == "halfbyte-tiny"
    shipped = bundled.locate("tiny-mobile")
    for file in shipped.iterdir():
        assert (out / "tiny-mobile" / file.name).read_bytes() == file.read_bytes()
    before = packed.read_bytes()
    done = pack(source, out)
    assert done.returncode == 1
    assert "off the lattice of Q4_0: embedding" in done.stderr
    assert packed.read_bytes() == before


# ---- Transformers


def test_transformers_computes_the_same_from_the_gguf() -> None:
    reference, _ = from_gguf("tiny", dtype=torch.float32)
    ours = halfbyte.load("tiny", threads=1, activations="f32")
    ids = ours.tokenize(VERSE)
    with torch.no_grad():
        want = reference(torch.tensor([ids])).logits[0].numpy()
    # The tolerance of test_logits.py: float32 noise, and mistakes are far above.
    assert np.abs(ours.logits(ids) - want).max() <= 2e-4 * np.abs(want).max()


class Trace(NamedTuple):
    """What went into parts of Transformers' mobile model, and what came out."""

    linears: dict[str, tuple[Any, F32, F32]]
    stream: F32  # before the last norm
    logits: F32


@pytest.fixture(scope="module")
def mobile() -> Trace:
    folder = bundled.locate("tiny-mobile")
    options = {"dtype": torch.float32, "attn_implementation": "eager"}
    reference = AutoModelForCausalLM.from_pretrained(folder, **options).eval()
    seen: dict[str, tuple[Any, F32, F32]] = {}
    ends: dict[str, F32] = {}
    for key, module in reference.named_modules():
        if isinstance(module, gemma_quant.QuantizedLinear) and key != "lm_head":

            def note(module: Any, args: Any, out: Any, key: str = key) -> None:
                seen[key] = (module, args[0][0].numpy().copy(), out[0].numpy().copy())

            module.register_forward_hook(note)
    reference.model.norm.register_forward_pre_hook(
        lambda _, args: ends.update(stream=args[0][0].numpy().copy())
    )
    with torch.no_grad():
        logits = reference(mobile_ids()[None], use_cache=False).logits[0].numpy()
    return Trace(seen, ends["stream"], logits)


def mobile_ids() -> torch.Tensor:
    ids = halfbyte.load("tiny-mobile").tokenize(3 * (VERSE + "\n"))
    return torch.tensor(ids)


def test_mobile_products_are_those_of_transformers(mobile: Trace) -> None:
    # Part by part, with the tolerances that test_mobile.py derives.
    run = _core.Stages(halfbyte.load("tiny-mobile", threads=1)._core)
    count = different = 0
    for key, (module, x, want) in mobile.linears.items():
        step = np.float32(module.output_activation_scale.detach())
        got = run.product(int(key.split(".")[2]), KINDS[key.rpartition(".")[2]], x)
        codes, expected = np.rint(got / step), np.rint(want / step)
        assert np.abs(codes - expected).max() <= 1, key
        count += codes.size
        different += int((codes != expected).sum())
    assert len(mobile.linears) == 64
    assert count > 10**6
    assert different <= 1e-4 * count


def test_mobile_head_is_that_of_transformers(mobile: Trace) -> None:
    ours = halfbyte.load("tiny-mobile", threads=1, activations="f32")
    got = _core.Stages(ours._core).head(mobile.stream)
    assert noise(got, mobile.logits).max() <= 1e-5


# ---- llama.cpp

LLAMA = """
import json, sys
import llama_cpp
# Its AMX kernels fault on hosts that name AMX without granting it to a process.
defaults = llama_cpp.llama_cpp.llama_model_default_params
params = defaults()
params.use_extra_bufts = False
llama_cpp.llama_cpp.llama_model_default_params = lambda: params
path, prompts, steps = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3])
f32 = llama_cpp.GGML_TYPE_F32
for prompt in prompts:
    model = llama_cpp.Llama(
        path, n_ctx=256, n_threads=1, n_threads_batch=1, verbose=False, swa_full=True,
        type_k=f32, type_v=f32, flash_attn=False,
    )
    ids = model.tokenize(prompt.encode(), add_bos=True, special=True)
    tokens = []
    for token in model.generate(ids, temp=0.0):
        tokens.append(token)
        if len(tokens) == steps:
            break
    print(json.dumps([ids, tokens]))
"""
STEPS = 32


@pytest.mark.skipif(find_spec("llama_cpp") is None, reason="llama_cpp is absent")
def test_llama_cpp_says_the_same() -> None:
    prompts = [
        f"<|turn>user\nWhat does {word} mean?<turn|>\n<|turn>model\n" for word in WORDS
    ]
    done = subprocess.run(
        [
            *(sys.executable, "-c", LLAMA, str(bundled.locate("tiny"))),
            *(json.dumps(prompts), str(STEPS)),
        ],
        check=False,
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    model = halfbyte.load("tiny", threads=1)
    exact = halfbyte.load("tiny", threads=1, activations="f32")
    clear = 0
    lines = done.stdout.splitlines()
    for prompt, line in zip(prompts, lines, strict=True):
        ids, tokens = json.loads(line)
        assert model.tokenize(prompt, special=True) == ids
        rows = slice(len(ids) - 1, len(ids) - 1 + STEPS)
        logits = model.logits(ids + tokens[:-1])[rows]
        rounded = np.abs(logits - exact.logits(ids + tokens[:-1])[rows]).max(-1)
        # Both round activations to 8 bits, in blocks of their own, and so each may be
        # off by what we are off; llama.cpp's table of GELU adds up to 0.1. A lead of
        # the first choice over another is off by twice that.
        doubt = 2 * (2 * rounded + 0.1)
        behind = logits.max(-1) - logits[np.arange(STEPS), tokens]
        assert (behind <= doubt).all(), (prompt, behind - doubt)
        second = np.sort(logits, axis=-1)[:, -2]
        clear += int((logits.max(-1) - second > doubt).sum())
    assert clear >= len(WORDS) * STEPS / 3, clear
