"""Token-by-token sampling with a cache and an explicit random generator.

Shapes: B prompts, V vocabulary. The global random state is never touched, so sampling during training doesn't
change the steps after it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from raymill.generate.decoding import decode_stream
from raymill.generate.modes import mode_of
from raymill.generate.rows import GrowingRows
from raymill.model.shape import context_length
from raymill.objective.heads import Fp32Head

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedModel


def next_token(
    logits_BV: torch.Tensor, temperature: float, top_p: float, generator: torch.Generator
) -> torch.Tensor:
    """Draw one token per row, [B]; temperature 0 takes the most likely.

    `top_p` keeps the smallest set of tokens whose probability reaches it (Holtzman et al. 2020).
    """
    if temperature == 0:
        return logits_BV.argmax(dim=-1)
    uniform_B = torch.rand(len(logits_BV), generator=generator, dtype=torch.float64)
    return draw(logits_BV, temperature, top_p, uniform_B.to(logits_BV.device))[0]


def draw(
    logits_BV: torch.Tensor, temperature: float, top_p: float, uniform_B: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw one token per row, [B], by inverting its distribution function; return also its log-probability.

    The log-probability, [B] in float64, is under the distribution drawn from: after temperature and top_p,
    renormalized. `uniform_B`: numbers in [0, 1) in float64, on the device of the fp32 logits.
    """
    probabilities_BV = nucleus(torch.softmax(logits_BV / temperature, dim=-1), top_p).double()
    reached_BV = probabilities_BV.cumsum(dim=-1)
    total_B1 = reached_BV[:, -1:]
    # The first token whose cumulative probability exceeds the number; such a token never has probability 0.
    token_B1 = torch.searchsorted(reached_BV, uniform_B[:, None] * total_B1, right=True)
    log_probs_B1 = (probabilities_BV.gather(-1, token_B1) / total_B1).log()
    return token_B1.squeeze(-1), log_probs_B1.squeeze(-1)


def nucleus(probabilities_BV: torch.Tensor, top_p: float) -> torch.Tensor:
    """Set the probabilities outside the nucleus to zero, without renormalizing.

    Of equally likely tokens at its edge, the first are inside.
    """
    if top_p >= 1:
        return probabilities_BV
    descending_BV = _descending(probabilities_BV)
    before_BV = descending_BV.cumsum(dim=-1, dtype=torch.float64) - descending_BV
    size_B1 = (before_BV < top_p).sum(dim=-1, keepdim=True)
    least_B1 = descending_BV.gather(-1, size_B1 - 1)
    above_BV, edge_BV = probabilities_BV > least_B1, probabilities_BV == least_B1
    left_B1 = size_B1 - above_BV.sum(dim=-1, keepdim=True)
    kept_BV = above_BV | (edge_BV & (edge_BV.cumsum(dim=-1) <= left_B1))
    return probabilities_BV.masked_fill(~kept_BV, 0)


def _descending(values_BV: torch.Tensor) -> torch.Tensor:
    """Return each row sorted, the largest value first."""
    # On a CPU, NumPy takes an eighth of the time of torch's sort, which also computes indices.
    if values_BV.device.type == "cpu":
        return torch.from_numpy(np.sort(values_BV.detach().numpy(), axis=-1)).flip(-1)
    return values_BV.sort(dim=-1, descending=True).values


def sample(
    model: PreTrainedModel,
    prompt_ids: Sequence[int],
    *,
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    generator: torch.Generator,
    end_of_text_id: int | None,
    lockstep: bool = False,
) -> Iterator[int]:
    """Continue a prompt of at least one token until the end of text or `max_new_tokens`; yield the new tokens.

    When prompt and answer outgrow the model's positions, the context slides: the cache is rebuilt from the last
    half of the positions. The output matrix computes in fp32. With `lockstep`, exactly `max_new_tokens` forward
    passes are made whatever is drawn, as ranks need that gather weights together (ZeRO-3).

    Raises:
        ConfigError: the family can't be sampled; see `mode_of`.
    """
    cached = mode_of(model).cached
    limit = context_length(model.config)
    ids = list(prompt_ids)[-limit:] if limit else list(prompt_ids)
    rows = GrowingRows(model, [ids], cached=cached)
    head = Fp32Head(model.get_output_embeddings())
    ended = False
    with torch.no_grad():
        for _ in range(max_new_tokens):
            if limit is not None and len(ids) > limit:
                ids = ids[-limit // 2 :]
                rows = GrowingRows(model, [ids], cached=cached)
            # Entered for this pass only, because the consumer of the tokens may use the model between two
            # of them.
            with head:
                logits_BV = rows.logits()
            token_B = next_token(logits_BV, temperature, top_p, generator)
            rows.append(token_B)
            token = int(token_B)
            ids.append(token)
            ended = ended or token == end_of_text_id
            if ended and not lockstep:
                return
            if not ended:
                yield token


def dropped_tokens(model: PreTrainedModel, prompt_ids: Sequence[int]) -> int:
    """Return the number of tokens that `sample` cuts from a prompt's beginning, for lack of positions."""
    limit = context_length(model.config)
    return 0 if limit is None else max(0, len(prompt_ids) - limit)


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
    was_training = model.training
    model.eval()
    texts = []
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
            generator=torch.Generator().manual_seed(seed * 1000 + number),
            end_of_text_id=end_of_text_id,
            lockstep=lockstep,
        )
        texts.append("".join(decode_stream(tokenizer, tokens, after=ids)))
    model.train(was_training)
    return texts
