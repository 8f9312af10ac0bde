# examples/qat/drafter.py
# Training of a drafter for a model of the Gemma 4 family.
# SPDX-License-Identifier: Apache-2.0
"""Train a drafter for a model, on texts that the model writes itself.

``python drafter.py MODEL OUT`` reads a directory of Transformers and writes another one,
which ``halfbyte.load(MODEL, drafter=OUT)`` takes, and ``OUT/train.jsonl``, the log. The
drafter learns by distillation, as it is used: it starts from the model's last hidden
state, sees the keys and values of the positions before, and goes on from its own state
for the tokens after. Minutes of one GPU for the tiny model.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from sampling import sample
from torch import Tensor
from torch.nn import functional
from transformers import (
    AutoModelForCausalLM,
    Gemma4AssistantConfig,
    Gemma4AssistantForCausalLM,
    Gemma4TextConfig,
)

SLIDING, FULL = "sliding_attention", "full_attention"


class Lesson(NamedTuple):
    """What the model makes of some texts, (B, T) tokens."""

    tokens: Tensor
    rows: (
        Tensor  # the tokens' embeddings as its first layer gets them, (B, T, backbone)
    )
    hidden: Tensor  # after its final norm
    logits: Tensor  # what follows each
    shared: dict[str, tuple[Tensor, Tensor]]  # keys and values of its last owners


def main() -> None:
    """Sample, train, save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--batch", type=int, default=64, help="texts a step")
    parser.add_argument("--texts", type=int, default=8192, help="to sample")
    parser.add_argument("--length", type=int, default=512, help="tokens of a text")
    parser.add_argument("--hidden", type=int, default=64, help="width of the drafter")
    parser.add_argument("--ahead", type=int, default=4, help="tokens to learn to guess")
    parser.add_argument("--rate", type=float, default=4e-3)
    parser.add_argument("--held-out", type=int, default=256, help="texts to measure on")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)
    torch.set_float32_matmul_precision("high")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    model = model.to(device).eval().requires_grad_(requires_grad=False)
    start = time.perf_counter()
    bos = model.config.bos_token_id
    texts = sample(
        model, args.texts + args.held_out, args.length, bos=bos, batch=2048
    ).to(device)
    held_out, texts = texts[: args.held_out], texts[args.held_out :]
    with (args.out / "train.jsonl").open("w") as log:

        def note(**entry: Any) -> None:
            print(json.dumps(entry), file=log, flush=True)
            print(json.dumps(entry), flush=True)

        note(**vars(args) | {"model": args.model.name, "out": args.out.name})
        note(sampled_seconds=time.perf_counter() - start)
        drafter = build(model, args.hidden).to(device)
        train(model, drafter, texts, args, note)
        drafter.eval()
        note(agreement=agreement(model, drafter, held_out, args))
        note(seconds=time.perf_counter() - start)
    drafter.to(torch.bfloat16).save_pretrained(args.out)


def build(model: Any, hidden: int) -> Any:
    """Make a drafter with the heads of the model's layers, four layers and no clusters."""
    target = model.config
    sliding, full = model.model.layers[0].self_attn, model.model.layers[-1].self_attn
    heads = target.num_attention_heads
    layers = [SLIDING, SLIDING, SLIDING, FULL]
    text = Gemma4TextConfig(
        vocab_size=target.vocab_size,
        vocab_size_per_layer_input=0,
        hidden_size=hidden,
        hidden_size_per_layer_input=0,
        intermediate_size=4 * hidden,
        layer_types=layers,
        num_hidden_layers=len(layers),
        num_kv_shared_layers=len(layers),
        num_attention_heads=heads,
        num_key_value_heads=heads // sliding.num_key_value_groups,
        num_global_key_value_heads=heads // full.num_key_value_groups,
        head_dim=sliding.head_dim,
        global_head_dim=full.head_dim,
        attention_k_eq_v=target.attention_k_eq_v,
        sliding_window=target.sliding_window,
        max_position_embeddings=target.max_position_embeddings,
        rope_parameters=target.rope_parameters,
        final_logit_softcapping=None,
        tie_word_embeddings=True,
    )
    config = Gemma4AssistantConfig(
        text_config=text, backbone_hidden_size=target.hidden_size
    )
    return Gemma4AssistantForCausalLM(config).float()


# ---- what the model does


@torch.no_grad()
def lesson(model: Any, tokens: Tensor) -> Lesson:
    """Run texts through the model."""
    seen = model(
        input_ids=tokens,
        use_cache=False,
        output_hidden_states=True,
        return_shared_kv_states=True,
    )
    rows = model.get_input_embeddings()(tokens)
    return Lesson(
        tokens, rows, seen.hidden_states[-1], seen.logits, seen.shared_kv_states
    )


# ---- what the drafter does with it


def masks(length: int, window: int, device: Any) -> dict[str, Tensor]:
    """What the drafter sees behind each token but the first: the keys before it."""
    query = torch.arange(1, length, device=device)[:, None]
    key = torch.arange(length, device=device)
    before = key < query
    near = before & (key >= query - window)
    return {FULL: before[None, None], SLIDING: near[None, None]}


def drafts(drafter: Any, seen: Lesson, ahead: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Logits of each guess, and of the model for the same token.

    Behind the tokens at 1, 2, … of every text, `ahead` times: guess k of the token at i
    is of what follows the token at i + k, given the text up to there. Keys are those up
    to i - 1, whatever k is, and so is the position.
    """
    length = seen.tokens.shape[1]
    window = drafter.config.get_text_config().sliding_window
    seen_by = masks(length, window, seen.tokens.device)
    places = torch.arange(1, length, device=seen.tokens.device)[None]
    state = seen.hidden[:, :-1]
    for k in range(ahead):
        # Texts end: the last guesses have no token to begin with, and do not count.
        rows = functional.pad(seen.rows[:, 1 + k :], (0, 0, 0, k))
        states = drafter.model(
            inputs_embeds=drafter.pre_projection(torch.cat([rows, state], -1)),
            attention_mask=seen_by,
            position_ids=places,
            shared_kv_states=seen.shared,
            use_cache=False,
            output_hidden_states=True,  # or all tokens but the last are left out
        ).last_hidden_state
        there = slice(0, length - 1 - k)
        yield drafter.lm_head(states)[:, there], seen.logits[:, 1 + k :]
        state = drafter.post_projection(states)


def train(model: Any, drafter: Any, texts: Tensor, args: Any, note: Any) -> None:
    """Distil: the divergence of each guess from what the model says itself."""
    optimizer = torch.optim.AdamW(
        drafter.parameters(), lr=args.rate, betas=(0.9, 0.98), weight_decay=0.0
    )
    warm_up = max(args.steps // 20, 1)
    order = torch.randperm(len(texts), device=texts.device)
    for step in range(args.steps):
        pick = torch.arange(step * args.batch, (step + 1) * args.batch) % len(texts)
        seen = lesson(model, texts[order[pick.to(texts.device)]])
        share = step / args.steps
        rate = min(
            (step + 1) / warm_up, 0.02 + 0.98 * (1 + math.cos(math.pi * share)) / 2
        )
        for group in optimizer.param_groups:
            group["lr"] = args.rate * rate
        losses = []
        for guess, teacher in drafts(drafter, seen, args.ahead):
            divergence = functional.kl_div(
                functional.log_softmax(guess, -1),
                functional.log_softmax(teacher, -1),
                log_target=True,
                reduction="none",
            )
            losses.append(divergence.sum(-1).mean())
        optimizer.zero_grad(set_to_none=True)
        torch.stack(losses).mean().backward()
        torch.nn.utils.clip_grad_norm_(drafter.parameters(), 1.0)
        optimizer.step()
        if step % 100 == 99 or step + 1 == args.steps:
            note(step=step + 1, kl=[round(loss.item(), 4) for loss in losses])


@torch.no_grad()
def agreement(model: Any, drafter: Any, texts: Tensor, args: Any) -> list[float]:
    """How often each guess is the model's likeliest token, all before it being right."""
    right: list[float] = [0.0] * args.ahead
    count = 0
    for part in texts.split(args.batch):
        seen = lesson(model, part)
        for k, (guess, teacher) in enumerate(drafts(drafter, seen, args.ahead)):
            right[k] += (guess.argmax(-1) == teacher.argmax(-1)).float().mean().item()
        count += 1
    return [round(share / count, 4) for share in right]


if __name__ == "__main__":
    main()
