"""Engine over transformers in which requests join and leave between any two tokens.

Every running request has a slot of a `SlotMemory`. The first slots belong to requests whose answers are being
drawn, those after them to requests whose prompts are being read, the rest to requests that have ended:

    slot      0 1 2 3 4      5 6            7 8 9 …
              decoding       prefilling     leftovers

so each pass works on a view of neighboring slots. A step makes at most two passes: one token for every row that
decodes, and a chunk of the prompts of rows that don't yet, bounded so that a long prompt doesn't stall others.

Shapes: B rows of a pass, T tokens of a row in it, W attended positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from raymill.generate.engine.recorded_pass import can_record, record_pass
from raymill.generate.engine.request import Progress
from raymill.generate.engine.request_state import RequestState
from raymill.generate.engine.row_sampler import RowSampler
from raymill.generate.engine.slots import Masks, Reaches, SlotMemory, Span, masked_kernel
from raymill.generate.engine.token_engine import TokenEngine, Watch, forward_parameters
from raymill.model.shape import NO_LIMIT

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Prompt tokens of a pass, unless the caller says otherwise.
PREFILL_TOKENS = 512
# A prompt's part of a pass is at least this long: more parts would be slower in all.
CHUNK = 128


@dataclass(frozen=True)
class Leftover:
    """Tokens that an ended request left in a slot. `ended`: number of requests that had ended before."""

    tokens: list[int]
    adapter: str | None
    ended: int


class SlotEngine(TokenEngine):
    """See `TokenEngine`.

    `prefill_tokens`: prompt tokens of a pass, padding included; None reads all prompts that have joined in one
    pass. `reuse`: a prompt that begins as a cached one does isn't computed again. Without it, answers are a
    function of the requests, the weights and the number of slots, bit for bit.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        slots: int,
        prefill_tokens: int | None = PREFILL_TOKENS,
        reuse: bool = True,
        adapters: Sequence[str] = (),
        inference: bool = False,
        watch: Watch | None = None,
    ) -> None:
        super().__init__(model, slots=slots, adapters=adapters, inference=inference, watch=watch)
        self._prefill_tokens = prefill_tokens or NO_LIMIT
        self._reuse = reuse
        self._reaches = Reaches.of(model.config)
        self._takes = forward_parameters(model)
        self._dtype = next(model.parameters()).dtype
        self._memory = SlotMemory(slots, self._positions or NO_LIMIT, self._device)
        # Only where the caller asked for speed, not for results that don't depend on earlier requests.
        self._recorded = None
        if inference and not adapters and can_record(model):
            with self._gradients(), self._head, masked_kernel(model.config):
                self._recorded = record_pass(model)
        # The first rows decode, the others prefill; row i has slot i.
        self._decoding = 0
        self._decode: _DecodePass | None = None
        self._leftovers: dict[int, Leftover] = {}
        self._ended = 0

    def _advance(self) -> list[Progress]:
        # Rows that join now decode from the next step on, so that no row makes two tokens in one.
        prefilling = self._prefilling_rows
        progress = self._decode_step() if self._decoding else []
        if prefilling or self._waiting:
            self._admit()
            progress += self._prefill_step()
        return progress

    @property
    def _prefilling_rows(self) -> list[RequestState]:
        return self._rows[self._decoding :]

    # Joining and leaving.

    def _admit(self) -> None:
        """Give free slots to waiting requests."""
        while self._waiting and len(self._rows) < self._slots:
            row = self._waiting.popleft()
            slot = len(self._rows)
            # Leftovers only give way where there is no room for another slot.
            wanted = min(slot + len(self._leftovers) + 1, self._slots)
            self._memory.reserve(wanted, len(row.tokens))
            if self._reuse:
                row.cached = row.reused = self._reused_prefix(row, slot)
                self._reused += row.reused
            self._rows.append(row)

    def _reused_prefix(self, row: RequestState, slot: int) -> int:
        """Fill a slot with the longest cached beginning of a prompt; return its length.

        The oldest leftover gives way. A leftover that holds more than the common part stays, as long as another
        can give way, and lends a copy.
        """
        common = {
            place: _common_length(left.tokens, row.tokens)
            for place, left in self._leftovers.items()
            # Log-probabilities of a prompt need the logits of all of its tokens.
            if left.adapter == row.parameters.adapter and not row.parameters.prompt_log_probs
        }
        best = max(common, key=lambda place: common[place], default=None)
        free = range(slot, self._memory.slots)
        oldest = min(free, key=lambda place: self._age(place))
        if best is None or not common[best]:
            self._move_leftover(oldest, slot)
            return 0
        # At least the last token is computed, since its logits are needed.
        length = min(common[best], len(row.tokens) - 1)
        whole = common[best] == len(self._leftovers[best].tokens)
        if whole or oldest == best:
            self._move_leftover(best, slot)
            return length
        self._move_leftover(oldest, slot)
        # The lender may have been in the slot that was needed.
        self._memory.copy(oldest if best == slot else best, slot, length)
        return length

    def _age(self, place: int) -> int:
        left = self._leftovers.get(place)
        return -1 if left is None else left.ended

    def _move_leftover(self, place: int, slot: int) -> None:
        """Move what is in a free place to a free slot, drop its record, and keep what was in the slot."""
        moved, kept = self._leftovers.pop(place, None), self._leftovers.pop(slot, None)
        if place == slot:
            return
        if kept is not None:
            self._leftovers[place] = kept
        width = max(len(left.tokens) if left is not None else 0 for left in (moved, kept))
        self._memory.swap(place, slot, width)

    def _leave(self, rows: Iterable[RequestState]) -> None:
        for row in rows:
            place = self._rows.index(row)
            if place < self._decoding:
                self._exchange(place, self._decoding - 1)
                self._decoding -= 1
                place = self._decoding
                self._decode = None
            self._exchange(place, len(self._rows) - 1)
            self._rows.pop()
            if self._reuse:
                left = Leftover(row.tokens[: row.cached], row.parameters.adapter, self._ended)
                self._leftovers[len(self._rows)] = left
                self._ended += 1

    def _exchange(self, one: int, other: int) -> None:
        """Exchange two rows and what their slots hold."""
        if one == other:
            return
        rows = self._rows
        self._memory.swap(one, other, max(rows[one].cached, rows[other].cached))
        rows[one], rows[other] = rows[other], rows[one]

    # Decoding.

    def _decode_step(self) -> list[Progress]:
        """Draw a token for every row that decodes."""
        rows = self._rows[: self._decoding]
        width = self._memory.bucketed(max(len(row.tokens) for row in rows))
        self._memory.reserve(len(rows), width)
        shape = (width, self._memory.width)
        if self._decode is not None and self._decode.shape == shape:
            decode = self._decode
            decode.advance()
        else:
            decode = _DecodePass(rows, *shape, self._reaches, self._dtype, self._device)
            self._decode = decode
        self._memory.span = decode.span
        inputs = (decode.token_B1, decode.position_B1)
        if self._recorded is not None and isinstance(decode.masks, torch.Tensor):
            self._passes += 1
            logits_BTV = self._recorded.logits(*inputs, decode.masks, self._memory)
        else:
            logits_BTV = self._forward(rows, *inputs, decode.masks)
        for row in rows:
            row.cached += 1
        progress, decode.drawn_B = self._record(rows, decode.sampler, logits_BTV[:, -1].float())
        return progress

    # Reading prompts.

    def _prefill_step(self) -> list[Progress]:
        """Read a chunk of the prompts of the rows that have joined; draw the first token after whole ones."""
        rows, chunk = self._chunk()
        if not rows:
            return []
        counts = [min(row.uncached, chunk) for row in rows]
        padded = max(counts)
        width = self._memory.bucketed(
            max(row.cached + n for row, n in zip(rows, counts, strict=True))
        )
        self._memory.reserve(len(self._rows), width)
        token_BT, position_BT, self._memory.span = self._chunk_tensors(rows, counts, width)
        scored = any(row.parameters.prompt_log_probs for row in rows)
        logits_BTV = self._forward(
            rows,
            token_BT,
            position_BT,
            self._reaches.masks(position_BT, width, self._dtype),
            keep=0 if scored else 1,
        )
        self._prefilled += sum(counts)
        for place, (row, n) in enumerate(zip(rows, counts, strict=True)):
            if row.parameters.prompt_log_probs:
                self._score_prompt(row, logits_BTV[place, padded - n :], row.cached)
            row.cached += n
        whole = [place for place, row in enumerate(rows) if not row.uncached]
        if not whole:
            return []
        read = [rows[place] for place in whole]
        self._begin_decoding(read)
        return self._record(read, RowSampler(read, self._device), logits_BTV[whole, -1].float())[0]

    def _chunk(self) -> tuple[list[RequestState], int]:
        """Return rows, and the tokens that each of them reads at most, padding counted as reading."""
        rows = self._prefilling_rows
        if not rows:
            return [], 0
        share = max(self._prefill_tokens // len(rows), min(CHUNK, self._prefill_tokens))
        chunk = min(share, max(row.uncached for row in rows))
        return rows[: max(1, self._prefill_tokens // chunk)], chunk

    def _chunk_tensors(
        self, rows: Sequence[RequestState], counts: Sequence[int], width: int
    ) -> tuple[torch.Tensor, torch.Tensor, Span]:
        """Return the next tokens of rows and their positions, [B, T], and where the pass writes them.

        Rows are padded at their beginning, so that each ends in the last column, where logits are computed.
        """
        padded, first = max(counts), self._decoding
        tokens, positions = [], []
        sources: list[int] = []
        targets: list[int] = []
        for place, (row, n) in enumerate(zip(rows, counts, strict=True)):
            begin, end = row.cached, row.cached + n
            tokens.append([0] * (padded - n) + row.tokens[begin:end])
            positions.append([0] * (padded - n) + list(range(begin, end)))
            sources += range((place + 1) * padded - n, (place + 1) * padded)
            slot_begin = (first + place) * self._memory.width
            targets += range(slot_begin + begin, slot_begin + end)
        source_N = None if len(sources) == len(rows) * padded else self._tensor(sources)
        span = Span(first, len(rows), width, self._tensor(targets), source_N)
        return self._tensor(tokens), self._tensor(positions), span

    def _begin_decoding(self, rows: Sequence[RequestState]) -> None:
        """Move rows whose prompts are read to those that decode."""
        for row in rows:
            self._exchange(self._rows.index(row, self._decoding), self._decoding)
            self._decoding += 1
        self._decode = None

    # The pass.

    def _forward(
        self,
        rows: Sequence[RequestState],
        token_BT: torch.Tensor,
        position_BT: torch.Tensor,
        masks: Masks,
        keep: int = 1,
    ) -> torch.Tensor:
        """Return logits, [B, T, V], of the last `keep` tokens of each row; 0 keeps all."""
        self._passes += 1
        arguments = {"position_ids": position_BT, "logits_to_keep": keep}
        with masked_kernel(self._model.config):
            output = self._model(
                input_ids=token_BT,
                attention_mask=masks,
                cache=self._memory.cache,
                use_cache=True,
                **{name: value for name, value in arguments.items() if name in self._takes},
                **self._adapter_arguments(rows),
            )
        logits_BTV: torch.Tensor = output.logits
        return logits_BTV

    def _tensor(self, values: Sequence[object]) -> torch.Tensor:
        return torch.tensor(values, device=self._device)


class _DecodePass:
    """Inputs of the passes that decode the same rows, updated in place from pass to pass."""

    def __init__(
        self,
        rows: Sequence[RequestState],
        width: int,
        slot_width: int,
        reaches: Reaches,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.shape = (width, slot_width)
        self.token_B1 = torch.tensor([row.tokens[-1:] for row in rows], device=device)
        self.position_B1 = torch.tensor([[row.cached] for row in rows], device=device)
        slot_B = torch.arange(len(rows), device=device)
        self.span = Span(0, len(rows), width, slot_B * slot_width + self.position_B1[:, 0])
        self.masks = reaches.masks(self.position_B1, width, dtype)
        self.sampler = RowSampler(rows, device)
        self._reaches = reaches
        # Tokens that the last pass gave, which the next one reads.
        self.drawn_B = self.token_B1[:, 0]

    def advance(self) -> None:
        """Continue with the tokens that were drawn."""
        self.token_B1.copy_(self.drawn_B[:, None])
        self.position_B1.add_(1)
        self.span.targets.add_(1)
        self._reaches.advance(self.masks, self.position_B1)


def _common_length(one: list[int], other: list[int]) -> int:
    """Return the length of the longest common beginning."""
    if one[: len(other)] == other[: len(one)]:
        return min(len(one), len(other))
    # Comparing slices is much faster than comparing elements.
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if one[low:middle] == other[low:middle] else (low, middle - 1)
    return low
