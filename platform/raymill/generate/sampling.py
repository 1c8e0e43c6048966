"""Sampling tokens one by one, with a cache, from a generator of its own.

Shapes: B prompts, V vocabulary. The global random state is never touched, so sampling in the middle of
training changes nothing after it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch


def next_token(
    logits_BV: torch.Tensor, temperature: float, top_p: float, generator: torch.Generator
) -> torch.Tensor:
    """Draw one token a row, [B]; temperature 0 takes the likeliest.

    top_p keeps the smallest set of tokens whose probability reaches it (Holtzman et al. 2020).
    """
    if temperature == 0:
        return logits_BV.argmax(dim=-1)
    probabilities_BV = torch.softmax(logits_BV.double() / temperature, dim=-1)
    return (
        torch.multinomial(nucleus(probabilities_BV, top_p).cpu(), 1, generator=generator)
        .squeeze(-1)
        .to(logits_BV.device)
    )


def nucleus(probabilities_BV: torch.Tensor, top_p: float) -> torch.Tensor:
    """Probabilities with everything outside the nucleus set to zero; not renormalised."""
    if top_p >= 1:
        return probabilities_BV
    sorted_BV, order_BV = probabilities_BV.sort(dim=-1, descending=True)
    before_BV = sorted_BV.cumsum(dim=-1) - sorted_BV
    kept_BV = torch.where(before_BV < top_p, sorted_BV, torch.zeros_like(sorted_BV))
    return torch.zeros_like(probabilities_BV).scatter(-1, order_BV, kept_BV)


def sample(
    model: Any,
    prompt_ids: Sequence[int],
    *,
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    generator: torch.Generator,
    end_of_text_id: int | None,
    lockstep: bool = False,
) -> Iterator[int]:
    """Continue a prompt of at least one token, until the end of text or `max_new_tokens`.

    A prompt and answer longer than the model's positions slide: the cache is rebuilt from the last
    half of them. With `lockstep`, exactly `max_new_tokens` forward passes are made whatever is drawn,
    as ranks must that gather weights together.
    """
    device = next(model.parameters()).device
    limit = int(model.config.max_position_embeddings)
    ids = list(prompt_ids)[-limit:]
    cache: Any = None
    ended = False
    with torch.no_grad():
        for _ in range(max_new_tokens):
            if cache is not None and len(ids) > limit:
                ids, cache = ids[-limit // 2 :], None
            fresh = ids if cache is None else ids[-1:]
            output = model(
                input_ids=torch.tensor([fresh], device=device),
                cache=cache,
                use_cache=True,
            )
            cache = output.cache
            token = int(next_token(output.logits[:, -1].float(), temperature, top_p, generator))
            ids.append(token)
            ended = ended or token == end_of_text_id
            if ended and not lockstep:
                return
            if not ended:
                yield token


def sample_texts(
    model: Any,
    tokenizer_folder: Path,
    prompts: Sequence[str],
    *,
    end_of_text_id: int,
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    seed: int,
    lockstep: bool = False,
) -> list[str]:
    """Continuations of `prompts`, without them; a document starts with the end-of-text token."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(tokenizer_folder / "tokenizer.json"))
    was_training = model.training
    model.eval()
    texts = []
    for number, prompt in enumerate(prompts):
        ids = [end_of_text_id, *tokenizer.encode(prompt, add_special_tokens=False).ids]
        tokens = sample(
            model,
            ids,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            generator=torch.Generator().manual_seed(seed * 1000 + number),
            end_of_text_id=end_of_text_id,
            lockstep=lockstep,
        )
        texts.append(tokenizer.decode(list(tokens)))
    model.train(was_training)
    return texts
