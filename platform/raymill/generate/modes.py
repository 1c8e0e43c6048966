"""Ways to sample a family, tried with the model itself before it answers: in batches, or only row by row.

Padding on the left, a cache, and rows that end before others are wrong in silence in some families. So a few
rows are read as sampling reads them, and held against what training computes of each row alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch

from raymill.errors import ConfigError
from raymill.generate.rows import GrowingRows
from raymill.objective.heads import Fp32Head
from raymill.objective.sequences import Sequences, passed

# Tokens of each row that is tried, of its prompt and its answer: the longest prompt's row ends first.
# Together they are some fifteen forward passes over a few tokens, once for a model.
TRIED = ((9, 1), (2, 4), (5, 3))
# Smaller ones are often padding or the like, which some families treat in ways of their own.
FIRST_ID = 5
TOLERANCE = 1e-4  # of the logits' own size, in fp32; rounding is a tenth of that at most
ROUNDINGS = 8  # in 16 bits, so many of a number's own


@dataclass(frozen=True)
class SamplingMode:
    """`batched`: rows share a tensor; `cached`: each token is read once. `why`: what is wrong with the
    fastest."""

    batched: bool = True
    cached: bool = True
    why: str = ""

    def note(self, model: Any) -> str | None:
        """Say in a line that sampling takes longer; None: it doesn't."""
        if not self.why:
            return None
        slow = {"row by row": not self.batched, "without a cache": not self.cached}
        how = " and ".join(name for name, true in slow.items() if true)
        return f"{_family(model)} is sampled {how}, which takes longer: {self.why}"


# From the fastest to the slowest.
MODES = tuple(
    SamplingMode(batched, cached)
    for batched, cached in ((True, True), (False, True), (True, False), (False, False))
)
_tried: WeakKeyDictionary[Any, SamplingMode] = WeakKeyDictionary()


def mode_of(model: Any) -> SamplingMode:
    """Try how a model can be sampled, once for each model. Collective where ranks share its weights.

    Raises:
        ConfigError: in no way: its logits are never those of the whole text, or it fails.
    """
    if model not in _tried:
        _tried[model] = _first_that_agrees(model)
    return _tried[model]


def use_mode(model: Any, mode: SamplingMode) -> None:
    """Have `mode_of` return this: what another rank found, say."""
    _tried[model] = mode


def _first_that_agrees(model: Any) -> SamplingMode:
    was_training = model.training
    model.eval()
    why: list[str] = []
    try:
        with torch.no_grad(), Fp32Head(model.get_output_embeddings()):
            alone = [_whole(model, prompt, answer) for prompt, answer in _rows()]
            for mode in MODES:
                problem = _problem(model, mode, alone)
                if problem is None:
                    return replace(mode, why=why[0] if why else "")
                why.append(problem)
    finally:
        model.train(was_training)
    raise ConfigError(
        [
            f"model: {_family(model)} can't be sampled: {why[-1]}; choose a model of another family "
            "(docs/families.md has those that were tried)"
        ]
    )


def _family(model: Any) -> str:
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    return type(inner).__name__


def _rows() -> list[tuple[list[int], list[int]]]:
    """(prompt, answer) of each row."""
    found = []
    for row, (prompt, answer) in enumerate(TRIED):
        tokens = [FIRST_ID + (5 * row + place) % 16 for place in range(prompt + answer)]
        found.append((tokens[:prompt], tokens[prompt:]))
    return found


def _whole(model: Any, prompt: list[int], answer: list[int]) -> torch.Tensor:
    """[answer's tokens, V] logits of each, as training computes them: in one pass, unpadded and uncached."""
    device = next(model.parameters()).device
    output = passed(model, Sequences.of(torch.tensor([[*prompt, *answer]])), device)
    logits_TV: torch.Tensor = output.logits[0, len(prompt) - 1 : -1].float()
    return logits_TV


def _problem(model: Any, mode: SamplingMode, alone: list[torch.Tensor]) -> str | None:
    """Return what is wrong with rows that are sampled so; None: nothing."""
    rows, cache = (
        "in batches" if mode.batched else "row by row",
        "with" if mode.cached else "without",
    )
    how = f"{rows} {cache} a cache"
    every = list(range(len(TRIED)))
    # In batches, a row may be the last one, too.
    batches = [every, [1]] if mode.batched else [[row] for row in every]
    apart: list[torch.Tensor] = []
    try:
        for batch in batches:
            grown = _grown(model, batch, mode.cached)
            apart += [_difference(logits_TV, alone[row]) for row, logits_TV in grown.items()]
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # noqa: BLE001  (a family may fail in any way)
        reason = " ".join(str(error).split())[:120]
        return f"{how}, it fails ({type(error).__name__}: {reason})"
    allowed = tolerance_of(model)
    # In 16 bits, rounding may send one token or another to another expert: there the middle one counts.
    of_row = torch.amax if allowed == TOLERANCE else torch.median
    difference = max(float(of_row(apart_T)) for apart_T in apart)
    if difference <= allowed:
        return None
    return (
        f"{how}, its logits differ from those of each text alone by {difference:.1e} of their size"
    )


def tolerance_of(model: Any) -> float:
    """By how much what is computed in two ways may differ, relative to its size."""
    return max(TOLERANCE, ROUNDINGS * torch.finfo(next(model.parameters()).dtype).eps)


def _grown(model: Any, rows: list[int], cached: bool) -> dict[int, torch.Tensor]:
    """Logits as `_whole` gives them, of rows read as sampling reads them."""
    tried = _rows()
    growing = GrowingRows(model, [tried[row][0] for row in rows], cached=cached)
    seen: dict[int, list[torch.Tensor]] = {row: [] for row in rows}
    held = rows
    while held:
        logits_BV = growing.logits()
        for row, logits_V in zip(held, logits_BV, strict=True):
            seen[row].append(logits_V)
        given = [tried[row][1][len(seen[row]) - 1] for row in held]
        growing.append(torch.tensor(given, device=logits_BV.device))
        kept = [place for place, row in enumerate(held) if len(seen[row]) < len(tried[row][1])]
        if 0 < len(kept) < len(held):
            growing.keep(kept)
        held = [held[place] for place in kept]
    return {row: torch.stack(logits) for row, logits in seen.items()}


def _difference(found_TV: torch.Tensor, alone_TV: torch.Tensor) -> torch.Tensor:
    """[T] By how much logits differ, relative to their size; a constant that is added to all changes nothing.

    Of logits that aren't finite even alone, nothing is asked.
    """
    known_TV = alone_TV.isfinite()

    def centered(values_TV: torch.Tensor) -> torch.Tensor:
        values_TV = torch.where(known_TV, values_TV, 0)
        mean_T1 = values_TV.sum(dim=-1, keepdim=True) / known_TV.sum(dim=-1, keepdim=True).clamp(1)
        return torch.where(known_TV, values_TV - mean_T1, 0)

    size_T = centered(alone_TV).norm(dim=-1).clamp(min=torch.finfo(torch.float32).tiny)
    apart_T: torch.Tensor = (centered(found_TV) - centered(alone_TV)).norm(dim=-1) / size_T
    return apart_T.nan_to_num(nan=torch.inf)
