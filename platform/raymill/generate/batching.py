"""Before a model answers: whether its family can be sampled in batches, or only row by row, tried with the model
itself.

Padding on the left, a cache, and rows that end before others are wrong in silence in some families. So a few rows
are read as sampling reads them, and held against what training computes of each row alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch

from raymill.errors import ConfigError
from raymill.generate.rows import GrowingRows
from raymill.objective.heads import Fp32Head
from raymill.objective.sequences import Sequences, passed

# Tokens of each row that is tried: of its prompt, and of its answer. Longer prompts end both before and after
# shorter ones. Together they are a dozen forward passes over a few tokens, once for a model.
TRIED = ((9, 1), (2, 5), (5, 3), (1, 5))
FIRST_ID = 5  # Smaller ones are often padding or the like, which some families treat in ways of their own.
TOLERANCE = 1e-3  # of the logits' own size, in fp32; rounding is a thousandth of that
ROUNDINGS = 8  # in 16 bits, so many of a number's own


@dataclass(frozen=True)
class Batching:
    """How a model is sampled; `apart`: by how much its logits differ in batches, relative to their size, or the
    error that they end in."""

    together: bool
    apart: str = ""

    def note(self, model: Any) -> str:
        """Say in a line that rows are sampled one by one."""
        return (
            f"{_family(model)} is sampled row by row, which takes longer: in a batch of prompts of several lengths, "
            f"{self.apart}"
        )


_known: WeakKeyDictionary[Any, Batching] = WeakKeyDictionary()


def batching(model: Any) -> Batching:
    """Try how a model can be sampled, once for each model. Collective where its weights are shared out over ranks.

    Raises:
        ConfigError: not even row by row: its logits are then not those of the whole text, or it fails.
    """
    if model not in _known:
        _known[model] = _tried(model)
    return _known[model]


def remember(model: Any, found: Batching) -> None:
    """Have `batching` return this: what another rank found, say."""
    _known[model] = found


def _tried(model: Any) -> Batching:
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), Fp32Head(model.get_output_embeddings()):
            alone = [_whole(model, prompt, answer) for prompt, answer in _rows()]
            together = _apart(model, alone, [list(range(len(TRIED)))])
            if together is None:
                return Batching(True)
            one_by_one = _apart(model, alone, [[row] for row in range(len(TRIED))])
    finally:
        model.train(was_training)
    if one_by_one is None:
        return Batching(False, together)
    raise ConfigError(
        [
            f"model: {_family(model)} can't be sampled: token by token, {one_by_one}; choose a model of a family that "
            "can (docs/families.md)"
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
    """[answer's tokens, V] logits of each, as training computes them: in one pass, without padding or a cache."""
    device = next(model.parameters()).device
    output = passed(model, Sequences.of(torch.tensor([[*prompt, *answer]])), device)
    logits_TV: torch.Tensor = output.logits[0, len(prompt) - 1 : -1].float()
    return logits_TV


def _apart(model: Any, alone: list[torch.Tensor], batches: list[list[int]]) -> str | None:
    """What is wrong with these batches of rows; None: nothing."""
    found: dict[int, torch.Tensor] = {}
    for rows in batches:
        try:
            found |= _grown(model, rows)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # noqa: BLE001  (a family may fail in any way)
            return f"it fails ({type(error).__name__}: {' '.join(str(error).split())[:120]})"
    rounding = torch.finfo(next(model.parameters()).dtype).eps
    allowed = max(TOLERANCE, ROUNDINGS * rounding)
    apart = [_difference(logits_TV, alone[row]) for row, logits_TV in found.items()]
    # In 16 bits, rounding may send one token or another to another expert: there the middle one counts.
    of_row = torch.amax if allowed == TOLERANCE else torch.median
    difference = max(float(of_row(apart_T)) for apart_T in apart)
    if difference <= allowed:
        return None
    return f"its logits differ from those of each text alone by {difference:.1e} of their size"


def _grown(model: Any, rows: list[int]) -> dict[int, torch.Tensor]:
    """Logits as `_whole` gives them, of rows read as sampling reads them."""
    tried = _rows()
    growing = GrowingRows(model, [tried[row][0] for row in rows])
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
    apart_T = (centered(found_TV) - centered(alone_TV)).norm(dim=-1) / size_T
    return apart_T.nan_to_num(nan=torch.inf)
