"""Continuation of single prompts, token by token, beyond the model's positions if need be.

The global random state is never touched, so sampling during training doesn't change the steps after it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from raymill.generate.batch import evaluation_mode, idle_passes
from raymill.generate.decoding import decode_stream
from raymill.generate.engine.request import SamplingParameters
from raymill.generate.modes import mode_of
from raymill.model.shape import context_length

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedModel


def sample(
    model: PreTrainedModel,
    prompt_ids: Sequence[int],
    *,
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    seed: int,
    end_of_text_id: int | None,
    lockstep: bool = False,
) -> Iterator[int]:
    """Continue a prompt of at least one token until the end of text or `max_new_tokens`; yield the new tokens.

    When prompt and answer fill the model's positions, the context slides: the last half is read again. With
    `lockstep`, exactly `max_new_tokens` forward passes are made whatever is drawn, as ranks need that gather
    weights together (ZeRO-3). The model must be in evaluation mode.

    Raises:
        ConfigError: the family can't be sampled; see `mode_of`.
    """
    limit = context_length(model.config)
    engine = mode_of(model).engine(model, slots=1)
    ids, drawn, ended = list(prompt_ids), 0, False
    while drawn < max_new_tokens and not ended:
        # At first as much of the prompt as leaves one position, later half of what there is.
        kept = len(ids) if limit is None else (limit - 1 if drawn == 0 else limit // 2)
        parameters = SamplingParameters(
            max_new_tokens - drawn,
            temperature,
            top_p,
            seed=seed,
            stop_ids=frozenset() if end_of_text_id is None else frozenset({end_of_text_id}),
        )
        engine.submit(ids[-kept:], parameters, skip=drawn)
        while engine.busy:
            for token in (token.id for progress in engine.step() for token in progress.tokens):
                ids.append(token)
                drawn += 1
                ended = token == end_of_text_id
                if not ended:
                    yield token
    if lockstep:
        idle_passes(model, max_new_tokens - engine.counts().passes)


def dropped_tokens(model: PreTrainedModel, prompt_ids: Sequence[int]) -> int:
    """Return the number of tokens that `sample` cuts from a prompt's beginning, for lack of positions."""
    limit = context_length(model.config)
    return 0 if limit is None else max(0, len(prompt_ids) - (limit - 1))


def sample_texts(
    model: PreTrainedModel,
    tokenizer: Tokenizer,
    prompts: Sequence[tuple[str, Sequence[int]]],
    *,
    end_of_text_id: int,
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    seed: int,
    note: Callable[[str], None],
    lockstep: bool = False,
) -> list[str]:
    """Return the continuations of `prompts`, which are pairs of a text and its token ids.

    `note` is called for each prompt that is too long for the model's positions.
    """
    texts = []
    with evaluation_mode(model):
        for number, (prompt, ids) in enumerate(prompts):
            if dropped := dropped_tokens(model, ids):
                note(
                    f"prompt {prompt[:40]!r}: the model has no positions for the first {dropped} of its "
                    f"{len(ids)} tokens, and continues the rest"
                )
            tokens = sample(
                model,
                ids,
                max_new_tokens=max_new_tokens,
                temperature=temperature,
                top_p=top_p,
                seed=seed * 1000 + number,
                end_of_text_id=end_of_text_id,
                lockstep=lockstep,
            )
            texts.append("".join(decode_stream(tokenizer, tokens, after=ids)))
    return texts
