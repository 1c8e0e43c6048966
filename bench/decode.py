"""Tokens per second of the decoding engine, without HTTP, over a bare decode loop of the same Llama in torch.

    .venv/bin/python bench/decode.py [2M/16 2M/64 124M/16]

The loop is written by hand, with the model's matrices and torch's fused norm: a preallocated cache, all rows of
one length, no mask, the likeliest token after every pass. Both read the prompts too. Rounds alternate, in fp32
on one thread; the ratio is the median of the rounds' ratios. The bars are 0.85 at 2M/16 and 0.95 elsewhere.
"""

from __future__ import annotations

import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "platform")]

import torch
import torch.nn.functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from raymill.generate.engine.request import SamplingParameters
from raymill.generate.engine.slot_engine import SlotEngine

PROMPT, ROUNDS = 64, 7


@dataclass(frozen=True)
class Setting:
    """A model's size, and the tokens of an answer."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    inner: int
    vocab: int
    answer: int


SIZES = {
    # As arch=nano, and as GPT-2 small with gates.
    "2M": Setting(192, 4, 6, 2, 512, 4096, 64),
    "124M": Setting(768, 12, 12, 12, 2048, 50257, 12),
}
BARS = {"2M/16": 0.85, "2M/64": 0.95, "124M/16": 0.95}


def build(size: Setting) -> LlamaForCausalLM:
    """Return a random Llama."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=size.hidden,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.kv_heads,
        intermediate_size=size.inner,
        vocab_size=size.vocab,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config).eval()


class BareLoop:
    """A Llama's decode loop in torch's functions alone."""

    def __init__(self, model: LlamaForCausalLM, rows: int, width: int) -> None:
        config = model.config
        self._heads, self._kv_heads = config.num_attention_heads, config.num_key_value_heads
        self._size = config.hidden_size // self._heads
        self._epsilon = config.rms_norm_eps
        self._embedding = model.model.embed_tokens.weight
        self._last_norm, self._head = model.model.norm.weight, model.lm_head.weight
        self._layers = [
            (
                layer.input_layernorm.weight,
                *(getattr(layer.self_attn, f"{name}_proj").weight for name in "qkvo"),
                layer.post_attention_layernorm.weight,
                *(getattr(layer.mlp, f"{name}_proj").weight for name in ("gate", "up", "down")),
            )
            for layer in model.model.layers
        ]
        self._keys, self._values = (
            torch.zeros(config.num_hidden_layers, rows, self._kv_heads, width, self._size)
            for _ in range(2)
        )
        angle = torch.arange(width)[:, None] * model.model.rotary_emb.inv_freq
        self._cos, self._sin = (torch.cat([part, part], -1) for part in (angle.cos(), angle.sin()))

    def answer(self, tokens_BT: torch.Tensor, count: int) -> torch.Tensor:
        """[B, count] The likeliest tokens after prompts of one length."""
        position, drawn = 0, []
        for _ in range(count):
            logits_BV = self._step(tokens_BT, position)
            position += tokens_BT.shape[1]
            tokens_BT = logits_BV.argmax(-1, keepdim=True)
            drawn.append(tokens_BT)
        return torch.cat(drawn, 1)

    def _step(self, tokens_BT: torch.Tensor, position: int) -> torch.Tensor:
        rows, length = tokens_BT.shape
        end = position + length
        cos, sin = self._cos[position:end], self._sin[position:end]
        half, heads, kv_heads = self._size // 2, self._heads, self._kv_heads
        group = heads // kv_heads

        def rotated(states: torch.Tensor) -> torch.Tensor:
            turned = torch.cat([-states[..., half:], states[..., :half]], -1)
            return states * cos + turned * sin

        hidden = F.embedding(tokens_BT, self._embedding)
        for number, (norm1, *qkv, out, norm2, gate, up, down) in enumerate(self._layers):
            normed = F.rms_norm(hidden, hidden.shape[-1:], norm1, self._epsilon)
            query, key, value = (
                F.linear(normed, matrix).view(rows, length, -1, self._size).transpose(1, 2)
                for matrix in qkv
            )
            keys, values = self._keys[number, :rows], self._values[number, :rows]
            keys[:, :, position:end], values[:, :, position:end] = rotated(key), value
            query, key, value = rotated(query), keys[:, :, :end], values[:, :, :end]
            if length == 1:
                # The queries of a group of heads are like several tokens of one head.
                query = query.reshape(rows, kv_heads, group, self._size)
                mixed = F.scaled_dot_product_attention(query, key, value)
                mixed = mixed.reshape(rows, 1, -1)
            else:
                key, value = (part.repeat_interleave(group, 1) for part in (key, value))
                mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
                mixed = mixed.transpose(1, 2).reshape(rows, length, -1)
            hidden = hidden + F.linear(mixed, out)
            normed = F.rms_norm(hidden, hidden.shape[-1:], norm2, self._epsilon)
            inner = F.silu(F.linear(normed, gate)) * F.linear(normed, up)
            hidden = hidden + F.linear(inner, down)
        last = F.rms_norm(hidden[:, -1], hidden.shape[-1:], self._last_norm, self._epsilon)
        return F.linear(last, self._head)


def decoded(engine: SlotEngine, prompts: list[list[int]], count: int) -> list[list[int]]:
    """Return the engine's answers."""
    keys = [engine.submit(p, SamplingParameters(count, temperature=0.0)) for p in prompts]
    answers: dict[int, list[int]] = {key: [] for key in keys}
    while engine.busy:
        for progress in engine.step():
            answers[progress.key] += [token.id for token in progress.tokens]
    return [answers[key] for key in keys]


def compare(name: str) -> float:
    """Print the speeds at a size and number of rows, such as 2M/16; return the ratio."""
    size, rows = SIZES[name.split("/")[0]], int(name.split("/")[1])
    model = build(size)
    prompts = torch.randint(5, size.vocab, (rows, PROMPT)).tolist()
    with torch.inference_mode():
        loop = BareLoop(model, rows, PROMPT + size.answer)
    engine = SlotEngine(
        model, slots=rows, prefill_tokens=rows * PROMPT, reuse=False, inference=True
    )
    ratios, bare_rates, engine_rates = [], [], []
    for turn in range(ROUNDS + 1):
        started = time.process_time()
        with torch.inference_mode():
            bare = loop.answer(torch.tensor(prompts), size.answer).tolist()
        between = time.process_time()
        ours = decoded(engine, prompts, size.answer)
        bare_s, ours_s = between - started, time.process_time() - between
        if turn:  # the first warms up
            ratios.append(bare_s / ours_s)
            bare_rates.append(rows * size.answer / bare_s)
            engine_rates.append(rows * size.answer / ours_s)
    same = sum(a == b for a, b in zip(bare, ours, strict=True))
    ratio = statistics.median(ratios)
    parameters = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    print(
        f"{name} ({parameters:.1f}M): engine {statistics.median(engine_rates):,.0f} tokens per CPU-s, bare "
        f"loop {statistics.median(bare_rates):,.0f}: {ratio:.3f} ({min(ratios):.3f} to {max(ratios):.3f}); "
        f"{same} of {rows} answers equal",
        flush=True,
    )
    return ratio


def main() -> None:
    torch.set_num_threads(1)
    below = [name for name in sys.argv[1:] or BARS if compare(name) < BARS.get(name, 0)]
    if below:
        raise SystemExit(f"below the bar: {', '.join(below)}")


if __name__ == "__main__":
    main()
