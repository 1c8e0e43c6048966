"""Choice of the fastest way of decoding that is correct for a model: in slots, row by row, without a cache.

Some model families silently compute wrong logits with a ready mask, with a cache, or after rows have left
the batch. So before sampling, a few rows are decoded in each way and compared with training's logits of each
row alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch

from raymill.errors import ConfigError
from raymill.generate.engine.request import SamplingParameters
from raymill.generate.engine.row_engine import RowEngine
from raymill.generate.engine.slot_engine import SlotEngine
from raymill.generate.engine.slots import small_windows
from raymill.generate.engine.token_engine import TokenEngine, Watch
from raymill.objective.forward import Sequences, run_model
from raymill.objective.heads import Fp32Head

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Prompt and answer tokens of each probe row. The third joins when the second has left, and the first is still
# being read then. Together they cost some twenty forward passes over a few tokens, once per model.
PROBE_LENGTHS = ((9, 3), (2, 2), (5, 3))
PROBE_SLOTS, PROBE_CHUNK = 2, 4
# Smaller ids are often special tokens such as padding, which some families treat differently.
FIRST_ID = 5
# Relative to the logits' size, in fp32; rounding is at most a tenth of it.
TOLERANCE = 1e-4
# In 16 bits, the tolerance as a multiple of the machine epsilon.
ROUNDINGS = 8


@dataclass(frozen=True)
class SamplingMode:
    """Decoding in batches or row by row (`batched`), with a cache or without (`cached`).

    `why`: the problem of the fastest mode, where this is a slower one.
    """

    batched: bool = True
    cached: bool = True
    why: str = ""

    def note(self, model: PreTrainedModel) -> str | None:
        """Return a one-line warning that sampling is slower than usual, or None if it isn't."""
        if not self.why:
            return None
        slow = {"row by row": not self.batched, "without a cache": not self.cached}
        how = " and ".join(name for name, true in slow.items() if true)
        return f"{_family(model)} is sampled {how}, which takes longer: {self.why}"

    def engine(
        self,
        model: PreTrainedModel,
        *,
        slots: int,
        prefill_tokens: int | None = None,
        reuse: bool = False,
        adapters: Sequence[str] = (),
        inference: bool = False,
        watch: Watch | None = None,
    ) -> TokenEngine:
        """Return an engine that decodes in this mode; see `SlotEngine` for the arguments."""
        if not self.batched:
            return RowEngine(
                model,
                slots=slots,
                cached=self.cached,
                adapters=adapters,
                inference=inference,
                watch=watch,
            )
        return SlotEngine(
            model,
            slots=slots,
            prefill_tokens=prefill_tokens,
            reuse=reuse,
            adapters=adapters,
            inference=inference,
            watch=watch,
        )


# From the fastest to the slowest.
MODES = (SamplingMode(), SamplingMode(batched=False), SamplingMode(batched=False, cached=False))
_modes: WeakKeyDictionary[PreTrainedModel, SamplingMode] = WeakKeyDictionary()


def mode_of(model: PreTrainedModel) -> SamplingMode:
    """Return the fastest correct mode, probed once per model. Collective where ranks share the model's weights.

    Raises:
        ConfigError: no mode is correct: every one fails, or computes other logits than training does.
    """
    if model not in _modes:
        _modes[model] = _fastest_correct(model)
    return _modes[model]


def use_mode(model: PreTrainedModel, mode: SamplingMode) -> None:
    """Make `mode_of` return this mode, for instance one that another rank has probed."""
    _modes[model] = mode


def _fastest_correct(model: PreTrainedModel) -> SamplingMode:
    was_training = model.training
    model.eval()
    why: list[str] = []
    try:
        for mode in MODES:
            problem = _problem(model, mode)
            if problem is None:
                return replace(mode, why=why[0] if why else "")
            why.append(problem)
    finally:
        model.train(was_training)
    raise ConfigError(
        [
            f"model: {_family(model)} can't be sampled: {why[-1]}; choose a model of another family "
            "(docs/families.md lists those that were tested)"
        ]
    )


def _family(model: PreTrainedModel) -> str:
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    return type(inner).__name__


def _probe_rows() -> list[tuple[list[int], list[int]]]:
    """Return (prompt, answer) of each row."""
    rows = []
    for row, (prompt, answer) in enumerate(PROBE_LENGTHS):
        tokens = [FIRST_ID + (5 * row + column) % 16 for column in range(prompt + answer)]
        rows.append((tokens[:prompt], tokens[prompt:]))
    return rows


def _training_logits(model: PreTrainedModel, prompt: list[int], answer: list[int]) -> torch.Tensor:
    """[answer's tokens, V] Logits as training computes them: in one pass, without padding or cache."""
    device = next(model.parameters()).device
    output = run_model(model, Sequences.from_tokens(torch.tensor([[*prompt, *answer]])), device)
    logits_TV: torch.Tensor = output.logits[0, len(prompt) - 1 : -1].float()
    return logits_TV


def _problem(model: PreTrainedModel, mode: SamplingMode) -> str | None:
    """Return the reason why a mode is incorrect, or None if it is correct."""
    rows, cache = (
        "in batches" if mode.batched else "row by row",
        "with" if mode.cached else "without",
    )
    how = f"{rows} {cache} a cache"
    # The windows of real models are longer than the probe. Slots mask them like any other.
    windows = small_windows(model.config) if mode.batched else nullcontext()
    with windows:
        with torch.no_grad(), Fp32Head(model.get_output_embeddings()):
            expected = [_training_logits(model, prompt, answer) for prompt, answer in _probe_rows()]
        try:
            found = _decoding_logits(model, mode)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # noqa: BLE001  (a family may fail in any way)
            reason = " ".join(str(error).split())[:120]
            return f"{how}, it fails ({type(error).__name__}: {reason})"
    differences = [_difference(*both) for both in zip(found, expected, strict=True)]
    allowed = tolerance_of(model)
    # In 16 bits, rounding may route a single token to a different expert, so there the median counts.
    reduce = torch.amax if allowed == TOLERANCE else torch.median
    difference = max(float(reduce(difference_T)) for difference_T in differences)
    if difference <= allowed:
        return None
    return (
        f"{how}, its logits differ from those of each text alone by {difference:.1e} of their size"
    )


def tolerance_of(model: torch.nn.Module) -> float:
    """Return the largest relative difference that rounding may cause between two computations of one value."""
    return max(TOLERANCE, ROUNDINGS * torch.finfo(next(model.parameters()).dtype).eps)


@dataclass
class _Script:
    """Constraint that allows the tokens of a probe's answer, one after the other."""

    answer: Sequence[int]
    place: int = 0

    def allowed(self) -> torch.Tensor:
        """See `TokenConstraint`."""
        token = self.answer[self.place]
        return torch.arange(token + 1) == token

    def accept(self, token: int) -> None:
        """See `TokenConstraint`."""
        assert token == self.answer[self.place], "only this token was allowed"
        self.place += 1


def _decoding_logits(model: PreTrainedModel, mode: SamplingMode) -> list[torch.Tensor]:
    """Return each row's logits, shaped as those of `_training_logits`, computed as decoding computes them."""
    seen: dict[int, list[torch.Tensor]] = {}

    def watch(keys: Sequence[int], logits_BV: torch.Tensor) -> None:
        for key, logits_V in zip(keys, logits_BV, strict=True):
            seen.setdefault(key, []).append(logits_V)

    engine = mode.engine(model, slots=PROBE_SLOTS, prefill_tokens=PROBE_CHUNK, watch=watch)
    keys = [
        engine.submit(
            prompt,
            SamplingParameters(len(answer), temperature=0.0, constraint=_Script(answer)),
        )
        for prompt, answer in _probe_rows()
    ]
    while engine.busy:
        engine.step()
    return [torch.stack(seen[key]) for key in keys]


def _difference(sampled_TV: torch.Tensor, expected_TV: torch.Tensor) -> torch.Tensor:
    """[T] Relative difference of logits, invariant to a constant added to all of a token's logits.

    Expected logits that aren't finite are ignored.
    """
    finite_TV = expected_TV.isfinite()

    def centered(values_TV: torch.Tensor) -> torch.Tensor:
        values_TV = torch.where(finite_TV, values_TV, 0)
        count_T1 = finite_TV.sum(dim=-1, keepdim=True).clamp(1)
        mean_T1 = values_TV.sum(dim=-1, keepdim=True) / count_T1
        return torch.where(finite_TV, values_TV - mean_T1, 0)

    size_T = centered(expected_TV).norm(dim=-1).clamp(min=torch.finfo(torch.float32).tiny)
    difference_T: torch.Tensor = (centered(sampled_TV) - centered(expected_TV)).norm(
        dim=-1
    ) / size_T
    return difference_T.nan_to_num(nan=torch.inf)
