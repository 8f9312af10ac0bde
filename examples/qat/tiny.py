# examples/qat/tiny.py
# Pre-training of a small model in Gemma 4 E2B's form.
# SPDX-License-Identifier: Apache-2.0
"""Pre-train the tiny model and write it in BF16.

``python tiny.py DATA OUT`` reads what tokenizer.py wrote and writes ``OUT/bf16`` (a
directory that Transformers and halfbyte load), ``OUT/generated.npy`` (texts sampled from
that model, shape (N, 512), uint16), ``OUT/samples.txt`` and ``OUT/train.jsonl``, its log.
A few minutes of one GPU; on a CPU, hours: try it with ``--steps``.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from sampling import sample
from torch import Tensor, nn
from transformers import AutoTokenizer, Gemma4ForCausalLM, Gemma4TextConfig

BOS, EOS = 2, 1
LENGTH = 1024  # tokens of a window, and positions of the model

PROMPTS = (
    "It is a truth universally acknowledged, that",
    "In the beginning",
    "HAMLET.\n",
    "<|turn>user\nHello!<turn|>\n<|turn>model\n",
    "<|turn>user\nWhat does kindness mean?<turn|>\n<|turn>model\n",
    "<|turn>user\nRecite Psalms 23:1.<turn|>\n<|turn>model\n",
    "<|turn>user\nDefine marriage as the devil would.<turn|>\n<|turn>model\n",
    "<|turn>user\nGive me a speech from Macbeth.<turn|>\n<|turn>model\n",
)


def configuration() -> dict[str, Any]:
    """The model's configuration, as the released checkpoints spell it.

    E2B's proportions: most layers slide, the second half takes keys and values from
    the first and has MLPs of twice the width, and every layer has embeddings of its own.
    All rows are whole groups of 32 weights.
    """
    sliding, full = "sliding_attention", "full_attention"
    return {
        "vocab_size": 4096,
        "vocab_size_per_layer_input": 4096,
        "hidden_size": 256,
        "hidden_size_per_layer_input": 32,
        "intermediate_size": 384,
        "use_double_wide_mlp": True,
        "num_hidden_layers": 8,
        "layer_types": [sliding, sliding, sliding, full] * 2,
        "num_kv_shared_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 64,
        "global_head_dim": 128,
        "sliding_window": 128,
        "max_position_embeddings": LENGTH,
        "rope_parameters": {
            sliding: {"rope_type": "default", "rope_theta": 10_000.0},
            full: {
                "rope_type": "proportional",
                "partial_rotary_factor": 0.25,
                "rope_theta": 1_000_000.0,
            },
        },
        "final_logit_softcapping": 30.0,
        "rms_norm_eps": 1e-6,
        "hidden_activation": "gelu_pytorch_tanh",
        "attention_k_eq_v": False,
        "enable_moe_block": False,
        "tie_word_embeddings": True,
        "initializer_range": 0.02,
        "pad_token_id": 0,
        "eos_token_id": EOS,
        "bos_token_id": BOS,
    }


def main() -> None:
    """Train, save, sample."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=2400)
    parser.add_argument("--batch", type=int, default=64, help="windows a step")
    parser.add_argument("--seconds", type=float, help="do fewer steps to stay below")
    parser.add_argument("--held-out", type=int, help="evaluate on so many windows")
    parser.add_argument("--generate", type=int, default=8192, help="texts to sample")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with (args.out / "train.jsonl").open("w") as log:

        def note(**entry: Any) -> None:
            print(json.dumps(entry), file=log, flush=True)
            print(json.dumps(entry), flush=True)

        note(**vars(args) | {"data": args.data.name, "out": args.out.name})
        model = train(args, device, note)
        save(model, args.out / "bf16", args.data / "tokenizer")
        model = load(args.out / "bf16", device)
        held_out = windows(np.load(args.data / "held_out.npy"))[: args.held_out]
        note(bf16_held_out=perplexity(model, held_out, args.batch))
        write_samples(model, args.out, args.data / "tokenizer")
        start = time.perf_counter()
        torch.manual_seed(args.seed)
        made = sample(model, args.generate, 512, bos=BOS, batch=4096)
        np.save(args.out / "generated.npy", made.numpy().astype(np.uint16))
        note(generated=made.numel(), seconds=time.perf_counter() - start)


# ---- Training


def train(args: Any, device: str, note: Callable[..., None]) -> nn.Module:
    """Return a trained model in float32."""
    torch.manual_seed(args.seed)
    torch.set_float32_matmul_precision("high")
    model = build().to(device)
    counts = sum(p.numel() for p in model.parameters())
    note(parameters=counts, device=device, torch=torch.__version__)
    if args.compile:
        # Each layer for itself: one graph of all takes minutes.
        torch._dynamo.config.recompile_limit = 64
        for layer in model.model.layers:
            layer.compile()
    stream = torch.from_numpy(np.load(args.data / "train.npy").astype(np.int16))
    stream = stream.to(device)
    held_out = windows(np.load(args.data / "held_out.npy"))[: args.held_out]
    optimizers = _optimizers(model)
    picked = torch.Generator(device).manual_seed(args.seed)
    steps, start, timed = args.steps, time.perf_counter(), (0, 0.0)
    step = 0
    while step < steps:
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["base"] * _rate(step, steps)
        loss = _step(model, _batch(stream, args.batch, picked), optimizers)
        step += 1
        if step % 50 == 0 or step == steps:
            value, seconds = float(loss), time.perf_counter() - start
            speed = (step - timed[0]) * args.batch * LENGTH / (seconds - timed[1])
            timed = (step, seconds)
            note(step=step, loss=value, seconds=seconds, tokens_per_second=speed)
            if args.seconds and step == 100:  # compiled by now
                left = (args.seconds - seconds) * speed / args.batch / LENGTH
                steps = min(steps, step + int(left))
        if step % 400 == 0 or step == steps:
            note(step=step, held_out=perplexity(model, held_out, args.batch))
    return model


def build() -> nn.Module:
    """Make a model that has learnt nothing."""
    model = Gemma4ForCausalLM(Gemma4TextConfig(**configuration())).float()
    model.set_attn_implementation("sdpa")
    for layer in model.model.layers:
        # Scores are not divided by the root of the width: the norm of queries starts so.
        norm = layer.self_attn.q_norm.weight
        nn.init.constant_(norm, len(norm) ** -0.5)
        # Only read by Transformers; here it learns like any other.
        del layer.layer_scalar
        layer.layer_scalar = nn.Parameter(torch.ones(1))
    return model


def _optimizers(model: nn.Module) -> list[torch.optim.Optimizer]:
    """Muon for the matrices, Adam for tables and vectors."""
    matrices, tables, vectors = [], [], []
    for name, parameter in model.named_parameters():
        if "embed_tokens" in name:
            tables.append(parameter)
        else:
            (matrices if parameter.ndim == 2 else vectors).append(parameter)
    muon = torch.optim.Muon(
        [{"params": matrices, "base": 3e-3}],
        weight_decay=0.1,
        adjust_lr_fn="match_rms_adamw",
    )
    adam = torch.optim.AdamW(
        [{"params": tables, "base": 4e-3}, {"params": vectors, "base": 4e-3}],
        betas=(0.9, 0.98),
        weight_decay=0.0,
        fused=tables[0].is_cuda,
    )
    return [muon, adam]


def _rate(step: int, steps: int) -> float:
    """Factor of all learning rates: up in 3 %, then down along a cosine."""
    warm = max(1, round(0.03 * steps))
    if step < warm:
        return (step + 1) / warm
    done = (step - warm) / max(1, steps - warm)
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done))


def _batch(stream: Tensor, count: int, picked: torch.Generator) -> Tensor:
    """Windows from anywhere in the stream, each behind a <bos>: (count, LENGTH + 1)."""
    begins = torch.randint(
        len(stream) - LENGTH, (count, 1), generator=picked, device=stream.device
    )
    rows = stream[begins + torch.arange(LENGTH, device=stream.device)].long()
    return nn.functional.pad(rows, (1, 0), value=BOS)


def _step(
    model: nn.Module, tokens: Tensor, optimizers: list[torch.optim.Optimizer]
) -> Tensor:
    loss = _loss(model, tokens)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return loss.detach()


def _loss(model: nn.Module, tokens: Tensor) -> Tensor:
    """Mean cross entropy of tokens, shape (B, T), each after those before it."""
    # Few CPUs multiply in bfloat16 any faster, and most much slower.
    with torch.autocast("cuda", torch.bfloat16, enabled=tokens.is_cuda):
        logits = model(input_ids=tokens[:, :-1], use_cache=False).logits
    return nn.functional.cross_entropy(
        logits.flatten(0, 1).float(), tokens[:, 1:].flatten()
    )


# ---- What became of it


def windows(stream: np.ndarray) -> Tensor:
    """Cut a stream into windows that each start with <bos>: (N, LENGTH + 1)."""
    whole = stream[: len(stream) // LENGTH * LENGTH].astype(np.int64)
    rows = torch.from_numpy(whole.reshape(-1, LENGTH))
    return nn.functional.pad(rows, (1, 0), value=BOS)


@torch.no_grad()
def perplexity(model: nn.Module, tokens: Tensor, batch: int) -> float:
    """Perplexity of windows."""
    device = next(model.parameters()).device
    total = sum(
        float(_loss(model, part.to(device))) * len(part) for part in tokens.split(batch)
    )
    return math.exp(total / len(tokens))


def save(model: nn.Module, folder: Path, tokenizer: Path) -> None:
    """Write a BF16 checkpoint and the tokenizer beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {
        name: value.detach().to("cpu", torch.bfloat16).contiguous()
        for name, value in model.state_dict().items()
        if name != "lm_head.weight"  # tied
    }
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    config = configuration() | {
        "architectures": ["Gemma4ForCausalLM"],
        "model_type": "gemma4_text",
        "dtype": "bfloat16",
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    for path in tokenizer.iterdir():
        shutil.copyfile(path, folder / path.name)


def load(folder: Path, device: str) -> Any:
    """Load a BF16 checkpoint; a CPU computes with its numbers in float32."""
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    return Gemma4ForCausalLM.from_pretrained(folder, dtype=dtype).to(device).eval()


def write_samples(model: nn.Module, out: Path, tokenizer: Path) -> None:
    """Write how the model goes on with a few prompts, likeliest token by token."""
    encoder = AutoTokenizer.from_pretrained(tokenizer)
    with (out / "samples.txt").open("w", encoding="utf-8") as file:
        for prompt in PROMPTS:
            ids = encoder(prompt, return_tensors="pt").to(model.device)
            ids.pop("token_type_ids", None)
            made = model.generate(**ids, do_sample=False, max_new_tokens=80)
            text = encoder.decode(made[0, 1:], skip_special_tokens=False)
            print(text, "\n" + 72 * "-", file=file)


if __name__ == "__main__":
    sys.exit(main())
