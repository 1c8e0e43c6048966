"""Extension of a parent's vocabulary: rows of its embeddings for tokens that it doesn't know."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from raymill.errors import ConfigError
from raymill.model.blueprint import Blueprint
from raymill.model.values import PIECE, Values, WithRows

NEW_TOKEN_NOISE = 0.1  # relative to the standard deviation of the embeddings


def extend_vocabulary(
    blueprint: Blueprint, vocab_size: int, new_ids: Sequence[int], seed: int
) -> Blueprint:
    """Extend the embeddings to `vocab_size` tokens, and initialize `new_ids` to the mean of all others.

    The mean keeps the distribution over the old tokens nearly as it was (Hewitt 2021, "Initializing New
    Word Embeddings for Pretrained Language Models"); a little noise tells the new ones apart, in case the
    embeddings are frozen. Unused rows of a padded vocabulary are initialized too, since they were never
    trained.
    """
    model = blueprint.model
    before = model.config.get_text_config(decoder=True).vocab_size
    if vocab_size > before:
        blueprint = resize_vocabulary(blueprint, vocab_size, seed)
    new_ids = untrained_ids(before, vocab_size, new_ids)
    if not new_ids:
        return blueprint
    # A generator of its own leaves the global one as it was.
    generator = torch.Generator().manual_seed(seed)
    matrices = [model.get_input_embeddings().weight]
    head = model.get_output_embeddings()
    # A tied matrix is initialized once.
    if head is not None and head.weight is not matrices[0]:
        matrices.append(head.weight)
    for matrix in matrices:
        values = blueprint.values[matrix]
        mean_H, spread_H = _mean_and_spread(values, frozenset(new_ids))
        noise_NH = [torch.randn(len(mean_H), generator=generator) for _ in new_ids]
        rows = {
            index: mean_H + NEW_TOKEN_NOISE * spread_H * noise_H
            for index, noise_H in zip(new_ids, noise_NH, strict=True)
        }
        blueprint.values[matrix] = WithRows(values, rows)
    return blueprint


def resize_vocabulary(blueprint: Blueprint, vocab_size: int, seed: int) -> Blueprint:
    """Extend the embeddings to `vocab_size` tokens, the new ones initialized as transformers does.

    Raises:
        ConfigError: transformers can't extend this model.
    """
    model, trace = blueprint.model, blueprint.trace()
    try:
        with trace.recording():
            model.resize_token_embeddings(vocab_size, mean_resizing=False)
    except (AttributeError, NotImplementedError) as error:
        raise ConfigError(
            [f"parent: transformers can't give {type(model).__name__} new tokens ({error})"]
        ) from error
    return Blueprint.traced(model, trace, seed)


def _mean_and_spread(matrix: Values, left_out: frozenset[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the mean and the standard deviation of a matrix's other rows, in fp32, read piece by piece."""
    rows, width = matrix.shape
    step = max(1, PIECE // width)
    count, sums = 0, torch.zeros(2, width, dtype=torch.float64)
    for first in range(0, rows, step):
        last = min(rows, first + step)
        kept = [row - first for row in range(first, last) if row not in left_out]
        part = matrix.read(first * width, last * width).view(-1, width)[kept].double()
        count += len(kept)
        sums += torch.stack((part.sum(dim=0), part.square().sum(dim=0)))
    mean = sums[0] / count
    variance = ((sums[1] - count * mean.square()) / max(1, count - 1)).clamp_(min=0)
    return mean.float(), variance.sqrt().float()


def untrained_ids(before: int, vocab_size: int, new_ids: Sequence[int]) -> list[int]:
    """Return the tokens whose embeddings are drawn, in a model extended from `before` to `vocab_size` rows.

    They include all rows that are added, even for tokens that the parent's tokenizer knows: transformers draws
    these at random, and every rank and restart must have the same.
    """
    return sorted({*new_ids, *range(before, vocab_size)})
