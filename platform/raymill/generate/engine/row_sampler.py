"""Drawing the next token of many rows at once, each by its own parameters.

Shapes: B rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from raymill.generate.engine.distribution import above_share, draw, likeliest, nucleus
from raymill.generate.engine.request import SamplingParameters, TokenLogProb
from raymill.generate.engine.request_state import RequestState


@dataclass(frozen=True)
class Draws:
    """One token per row, [B], on the device and as a list; and the log-probabilities that were asked for."""

    on_device: torch.Tensor
    tokens: list[int]
    # By row.
    model: dict[int, TokenLogProb]
    drawn: list[float] | None


class RowSampler:
    """Draws the tokens of a fixed sequence of rows; replaced when rows join or leave.

    What no row asks for isn't computed.
    """

    def __init__(self, rows: Sequence[RequestState], device: torch.device) -> None:
        self._rows, self._device = rows, device
        self._parameters = [row.parameters for row in rows]
        self._greedy = [p.temperature == 0 for p in self._parameters]
        self._all_greedy = all(self._greedy)
        # Greedy rows are drawn at temperature 1 with the others, and replaced.
        temperatures = [p.temperature or 1.0 for p in self._parameters]
        self._temperature_B1 = self._column(temperatures, torch.float32)
        self._top_p_B1 = self._wanted(lambda p: p.top_p, 1.0, torch.float64)
        self._top_k_B1 = self._wanted(lambda p: p.top_k, 0, torch.int64)
        self._min_p_B1 = self._wanted(lambda p: p.min_p, 0.0, torch.float32)
        self._constrained = [
            row for row, p in enumerate(self._parameters) if p.constraint is not None
        ]
        self._scored = [
            row for row, p in enumerate(self._parameters) if p.top_log_probs is not None
        ]
        self._drawn_log_probs = any(p.drawn_log_probs for p in self._parameters)
        self._changes: _LogitChanges | None = None
        self._changed = any(map(_changes_logits, self._parameters))

    def draw(self, logits_BV: torch.Tensor) -> Draws:
        """Draw from fp32 logits; constraints advance by their tokens."""
        own_BV = logits_BV
        if self._changed:
            if self._changes is None:
                self._changes = _LogitChanges(self._rows, logits_BV)
            logits_BV = self._changes.apply(logits_BV)
        if self._constrained:
            logits_BV = self._allowed(logits_BV)
        drawn_B = None
        if self._all_greedy:
            token_B = logits_BV.argmax(dim=-1)
        else:
            token_B, drawn_B = self._sample(logits_BV)
        tokens: list[int] = token_B.tolist()
        if self._changes is not None:
            self._changes.add(token_B)
        for row in self._constrained:
            constraint = self._parameters[row].constraint
            assert constraint is not None, "only constrained rows are listed"
            constraint.accept(tokens[row])
        drawn = None
        if self._drawn_log_probs:
            drawn = [0.0] * len(tokens) if drawn_B is None else drawn_B.tolist()
        return Draws(token_B, tokens, self._model_log_probs(own_BV, token_B), drawn)

    def _sample(self, logits_BV: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return tokens and their log-probabilities; the likeliest token, and 0, for greedy rows."""
        scaled_BV = logits_BV / self._temperature_B1
        if self._top_k_B1 is not None:
            scaled_BV = likeliest(scaled_BV, self._top_k_B1)
        probabilities_BV = torch.softmax(scaled_BV, dim=-1)
        if self._top_p_B1 is not None:
            probabilities_BV = nucleus(probabilities_BV, self._top_p_B1)
        if self._min_p_B1 is not None:
            probabilities_BV = above_share(probabilities_BV, self._min_p_B1)
        numbers = [
            0.0 if greedy else next(row.numbers)
            for row, greedy in zip(self._rows, self._greedy, strict=True)
        ]
        uniform_B = torch.tensor(numbers, dtype=torch.float64, device=self._device)
        token_B, log_prob_B = draw(probabilities_BV.double(), uniform_B)
        if any(self._greedy):
            greedy_B = torch.tensor(self._greedy, device=self._device)
            token_B = torch.where(greedy_B, logits_BV.argmax(dim=-1), token_B)
            log_prob_B = log_prob_B.masked_fill(greedy_B, 0.0)
        return token_B, log_prob_B

    def _allowed(self, logits_BV: torch.Tensor) -> torch.Tensor:
        """Set the logits of tokens to -inf that a row's constraint doesn't allow."""
        forbidden = torch.zeros(logits_BV.shape, dtype=torch.bool)
        for row in self._constrained:
            constraint = self._parameters[row].constraint
            assert constraint is not None, "only constrained rows are listed"
            allowed_V = constraint.allowed()
            # A model may have more rows of logits than the vocabulary has tokens.
            forbidden[row] = True
            forbidden[row, : len(allowed_V)] = ~allowed_V[: logits_BV.shape[1]]
        return logits_BV.masked_fill(forbidden.to(self._device), -torch.inf)

    def _model_log_probs(
        self, logits_BV: torch.Tensor, token_B: torch.Tensor
    ) -> dict[int, TokenLogProb]:
        if not self._scored:
            return {}
        scored_R = torch.tensor(self._scored, device=self._device)
        counts = [self._parameters[row].top_log_probs or 0 for row in self._scored]
        found = log_probs_of(logits_BV[scored_R], token_B[scored_R], counts)
        return dict(zip(self._scored, found, strict=True))

    def _wanted(
        self, value: Callable[[SamplingParameters], float], neutral: float, dtype: torch.dtype
    ) -> torch.Tensor | None:
        """[B, 1] A setting of all rows, or None where it changes nothing in any of them."""
        values = [
            neutral if greedy else value(p)
            for p, greedy in zip(self._parameters, self._greedy, strict=True)
        ]
        return None if all(one == neutral for one in values) else self._column(values, dtype)

    def _column(self, values: Sequence[float], dtype: torch.dtype) -> torch.Tensor:
        return torch.tensor(values, dtype=dtype, device=self._device)[:, None]


def log_probs_of(
    logits_NV: torch.Tensor, token_N: torch.Tensor, counts: Sequence[int]
) -> list[TokenLogProb]:
    """Return each token's log-probability in its place, and those of the likeliest tokens, `counts` of them."""
    log_probs_NV = logits_NV.log_softmax(dim=-1)
    own = log_probs_NV.gather(-1, token_N[:, None]).squeeze(-1).tolist()
    most = min(max(counts, default=0), logits_NV.shape[-1])
    if not most:
        return [TokenLogProb(one) for one in own]
    values, ids = (part.tolist() for part in log_probs_NV.topk(most, dim=-1))
    return [
        TokenLogProb(one, tuple(zip(ids[n][:count], values[n][:count], strict=True)))
        for n, (one, count) in enumerate(zip(own, counts, strict=True))
    ]


def _changes_logits(p: SamplingParameters) -> bool:
    penalties = p.repetition_penalty != 1 or p.presence_penalty != 0 or p.frequency_penalty != 0
    return bool(p.logit_bias) or penalties


class _LogitChanges:
    """Biases and penalties of all rows, with the tokens that they depend on."""

    def __init__(self, rows: Sequence[RequestState], logits_BV: torch.Tensor) -> None:
        self._bias_BV = torch.zeros_like(logits_BV)
        self._count_BV = torch.zeros_like(logits_BV)
        # Whether a token is in the prompt or the answer.
        self._seen_BV = torch.zeros_like(logits_BV, dtype=torch.bool)
        device = logits_BV.device
        for number, row in enumerate(rows):
            bias = row.parameters.logit_bias
            self._bias_BV[number, list(bias)] = torch.tensor(
                list(bias.values()), dtype=logits_BV.dtype, device=device
            )
            tokens = torch.tensor(row.tokens, device=device)
            self._seen_BV[number, tokens] = True
            answer = tokens[row.prompt_length :]
            self._count_BV[number].index_add_(
                0, answer, torch.ones_like(answer, dtype=torch.float32)
            )

        def column(values: list[float]) -> torch.Tensor:
            return torch.tensor(values, dtype=logits_BV.dtype, device=device)[:, None]

        self._repetition_B1 = column([row.parameters.repetition_penalty for row in rows])
        self._presence_B1 = column([row.parameters.presence_penalty for row in rows])
        self._frequency_B1 = column([row.parameters.frequency_penalty for row in rows])

    def apply(self, logits_BV: torch.Tensor) -> torch.Tensor:
        """Return the logits with biases, then penalties."""
        logits_BV = logits_BV + self._bias_BV
        divided_BV, times_BV = logits_BV / self._repetition_B1, logits_BV * self._repetition_B1
        repeated_BV = torch.where(logits_BV > 0, divided_BV, times_BV)
        logits_BV = torch.where(self._seen_BV, repeated_BV, logits_BV)
        logits_BV = logits_BV - self._frequency_B1 * self._count_BV
        return logits_BV - self._presence_B1 * (self._count_BV > 0)

    def add(self, token_B: torch.Tensor) -> None:
        """Count the tokens that were drawn."""
        token_B1 = token_B[:, None]
        self._seen_BV.scatter_(1, token_B1, True)
        self._count_BV.scatter_add_(1, token_B1, torch.ones_like(self._repetition_B1))
