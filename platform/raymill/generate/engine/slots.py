"""Keys and values of many rows in one block of memory, where every row has a write position of its own.

transformers' caches write all rows at the same position. Here a pass says which slots it reads and where each
of its tokens is written, so that rows of any length share it.

Shapes: S slots, W positions of a slot, H heads of keys, D numbers of a head; B rows of a pass, T new tokens of
a row, N new tokens in all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

from raymill.objective.forward import FLAT_KERNELS

if TYPE_CHECKING:
    from transformers import PretrainedConfig

# Attended widths are multiples of this by type of device: on a GPU few shapes should occur, and on a CPU little
# be computed in vain.
BUCKETS = {"cpu": 16, "cuda": 64}
# A slot's width at first; it is doubled when it is used up.
FIRST_WIDTH = 256
# Window that stands in for a model's own while it is tried; see `small_windows`.
SMALL_WINDOW = 4


@dataclass(frozen=True)
class Span:
    """Places that a pass reads and writes: `rows` slots from `first` on, of whose positions it sees `width`.

    `targets`, [N]: place of each new token among the S · W of the memory; `sources`, [N]: its place among the
    B · T of the pass, None where all of them are new.
    """

    first: int
    rows: int
    width: int
    targets: torch.Tensor
    sources: torch.Tensor | None = None


class SlotMemory:
    """Keys and values of all layers, which grow with use up to `most_slots` of `most_positions`.

    `cache` is what a model is given; a pass is made between setting `span` and the next change of it.
    """

    def __init__(self, most_slots: int, most_positions: int, device: torch.device) -> None:
        self._bucket = BUCKETS.get(device.type, 64)
        self._most_slots, self._most_width = most_slots, self.bucketed(most_positions)
        self.slots = self.width = 0
        self.span: Span | None = None
        self.cache = Cache(layer_class_to_replicate=partial(SlotLayer, self))

    def bucketed(self, width: int) -> int:
        """Round a width up to one that passes attend to."""
        return -(-width // self._bucket) * self._bucket

    def reserve(self, slots: int, width: int) -> None:
        """Grow to hold at least `slots` of `width` positions; both are at least doubled, up to the limits."""
        if slots <= self.slots and width <= self.width:
            return
        if slots > self.slots:
            self.slots = min(max(slots, 2 * self.slots), self._most_slots)
        if width > self.width:
            self.width = min(
                max(self.bucketed(width), 2 * self.width, FIRST_WIDTH), self._most_width
            )
        for layer in self._layers():
            layer.grow(self.slots, self.width)

    def swap(self, one: int, other: int, width: int) -> None:
        """Exchange the first `width` positions of two slots."""
        for stored_SWHD in self._stored():
            kept_WHD = stored_SWHD[one, :width].clone()
            stored_SWHD[one, :width] = stored_SWHD[other, :width]
            stored_SWHD[other, :width] = kept_WHD

    def copy(self, source: int, target: int, width: int) -> None:
        """Copy the first `width` positions of a slot to another."""
        for stored_SWHD in self._stored():
            stored_SWHD[target, :width] = stored_SWHD[source, :width]

    def tensors(self) -> list[torch.Tensor]:
        """Return keys and values, [S, W, H, D], layer by layer; none before the first pass."""
        return list(self._stored())

    def use(self, stored_SWHD: Sequence[torch.Tensor]) -> None:
        """Take these tensors, as `tensors` returned them, for keys and values."""
        for layer, keys, values in zip(
            self._layers(), stored_SWHD[::2], stored_SWHD[1::2], strict=True
        ):
            layer.keys, layer.values = keys, values

    def _layers(self) -> Iterator[SlotLayer]:
        yield from self.cache.layers

    def _stored(self) -> Iterator[torch.Tensor]:
        for layer in self._layers():
            yield from (stored for stored in (layer.keys, layer.values) if stored is not None)


class SlotLayer(CacheLayerMixin):  # type: ignore[misc]
    """Keys and values of one layer, each [S, W, H, D]: a token's numbers lie together, and so do a slot's."""

    is_sliding = False

    def __init__(self, memory: SlotMemory) -> None:
        super().__init__()
        self._memory = memory

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Allocate memory of the shape and type of the first keys and values, [B, H, T, D]."""
        slots, width = self._memory.slots, self._memory.width

        def empty(states_BHTD: torch.Tensor) -> torch.Tensor:
            heads, size = states_BHTD.shape[1], states_BHTD.shape[3]
            # Zeros, because what is masked is still multiplied by its weight of 0, and must be finite.
            return states_BHTD.new_zeros(slots, width, heads, size)

        self.keys, self.values = empty(key_states), empty(value_states)
        self.is_initialized = True

    def grow(self, slots: int, width: int) -> None:
        """Enlarge the memory, and keep what it holds."""
        if self.keys is None or self.values is None:
            return

        def grown(old_SWHD: torch.Tensor) -> torch.Tensor:
            if old_SWHD.shape[:2] == (slots, width):
                return old_SWHD
            new_SWHD = old_SWHD.new_zeros(slots, width, *old_SWHD.shape[2:])
            new_SWHD[: old_SWHD.shape[0], : old_SWHD.shape[1]] = old_SWHD
            return new_SWHD

        self.keys, self.values = grown(self.keys), grown(self.values)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: object, **__: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store keys and values, [B, H, T, D]; return all that the pass attends to, [B, H, width, D]."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        span = self._memory.span
        assert span is not None, "a pass needs a span"
        assert self.keys is not None and self.values is not None, "both were allocated"
        return _stored(self.keys, key_states, span), _stored(self.values, value_states, span)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return the width that a pass attends to, and its first position."""
        del query_length
        return self.get_seq_length(), 0

    def get_seq_length(self) -> int:
        """Return the width that a pass attends to: rows differ in their lengths."""
        return 0 if self._memory.span is None else self._memory.span.width

    def get_max_length(self) -> int:
        """Return -1: the memory grows."""
        return -1


def _stored(memory_SWHD: torch.Tensor, new_BHTD: torch.Tensor, span: Span) -> torch.Tensor:
    """Write new keys or values to their places; return a view of those that the pass attends to."""
    slots, width, heads, size = memory_SWHD.shape
    new_NK = new_BHTD.transpose(1, 2).reshape(-1, heads * size)
    if span.sources is not None:
        new_NK = new_NK[span.sources]
    memory_SWHD.view(slots * width, heads * size).index_copy_(0, span.targets, new_NK)
    return memory_SWHD[span.first : span.first + span.rows, : span.width].transpose(1, 2)


@dataclass(frozen=True)
class Reach:
    """Earlier positions that a token sees: all, the last `window` with its own, or those of its own chunk."""

    window: int | None = None
    chunk: int | None = None

    def mask(self, position_BT: torch.Tensor, width: int, dtype: torch.dtype) -> torch.Tensor:
        """[B, 1, T, width] 0 where a token at a position sees, -inf elsewhere; ready to be added to scores."""
        query_BT1 = position_BT[..., None]
        key_W = torch.arange(width, device=position_BT.device)
        hidden_BTW = key_W > query_BT1
        if self.window is not None:
            hidden_BTW |= key_W <= query_BT1 - self.window
        if self.chunk is not None:
            hidden_BTW |= key_W // self.chunk < query_BT1 // self.chunk
        mask_BTW = torch.zeros(hidden_BTW.shape, dtype=dtype, device=position_BT.device)
        return mask_BTW.masked_fill_(hidden_BTW, -torch.inf)[:, None]

    def advance(self, mask_B11W: torch.Tensor, position_B1: torch.Tensor) -> None:
        """Turn the mask of tokens at the positions before these into that of tokens at these, in place."""
        mask_BW = mask_B11W[:, 0, 0]
        if self.chunk is not None:
            mask_BW.copy_(self.mask(position_B1, mask_BW.shape[1], mask_BW.dtype)[:, 0, 0])
            return
        mask_BW.scatter_(1, position_B1, 0.0)
        if self.window is not None:
            left_B1 = position_B1 - self.window
            value_B1 = torch.zeros_like(left_B1, dtype=mask_BW.dtype)
            # Before a row has left its first window, position 0 is still seen.
            value_B1.masked_fill_(left_B1 >= 0, -torch.inf)
            mask_BW.scatter_(1, left_B1.clamp(min=0), value_B1)


Masks = torch.Tensor | dict[str, torch.Tensor]


@dataclass(frozen=True)
class Reaches:
    """Reach of each kind of layer; families whose layers are of several kinds take a mask for each."""

    by_kind: dict[str, Reach]

    @classmethod
    def of(cls, config: PretrainedConfig) -> Reaches:
        """Return the reaches of a model.

        Raises:
            NotImplementedError: it has layers of another kind than attention to keys and values by position.
        """
        text = _text_config(config)
        window = getattr(text, "sliding_window", None)
        known = {
            "full_attention": Reach(),
            "sliding_attention": Reach(window=window),
            "chunked_attention": Reach(chunk=getattr(text, "attention_chunk_size", None)),
        }
        kinds = set(getattr(text, "layer_types", None) or ())
        if not kinds:
            return cls({"": Reach(window=window)})
        if strange := kinds - known.keys():
            raise NotImplementedError(f"{min(strange)} has no keys and values by position")
        return cls({kind: known[kind] for kind in sorted(kinds)})

    def masks(self, position_BT: torch.Tensor, width: int, dtype: torch.dtype) -> Masks:
        """Return `Reach.mask` for all layers, or for each kind of them."""
        masks = {
            kind: reach.mask(position_BT, width, dtype) for kind, reach in self.by_kind.items()
        }
        return masks if len(masks) > 1 else next(iter(masks.values()))

    def advance(self, masks: Masks, position_B1: torch.Tensor) -> None:
        """See `Reach.advance`."""
        each = masks.values() if isinstance(masks, dict) else [masks]
        for reach, mask_B11W in zip(self.by_kind.values(), each, strict=True):
            reach.advance(mask_B11W, position_B1)


@contextmanager
def small_windows(config: PretrainedConfig) -> Iterator[None]:
    """Shrink a model's windows within the block, so that a few tokens reach beyond them.

    transformers reads them from the configuration in every pass.
    """
    text = _text_config(config)
    names = [
        name
        for name in ("sliding_window", "attention_chunk_size")
        if isinstance(getattr(text, name, None), int)
    ]
    before = {name: getattr(text, name) for name in names}
    for name, value in before.items():
        setattr(text, name, min(value, SMALL_WINDOW))
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(text, name, value)


@contextmanager
def masked_kernel(config: PretrainedConfig) -> Iterator[None]:
    """Let a model attend by a kernel that takes masks within the block, if its own takes none."""
    text = _text_config(config)
    before = getattr(text, "_attn_implementation", None)
    if before not in FLAT_KERNELS:
        yield
        return
    text._attn_implementation = "sdpa"
    try:
        yield
    finally:
        text._attn_implementation = before


def _text_config(config: PretrainedConfig) -> Any:
    """Return the configuration of the language model, of which others are parts around it."""
    find = getattr(config, "get_text_config", None)
    return config if find is None else find(decoder=True)
