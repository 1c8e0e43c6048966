"""Values of a parameter before it has memory: any range of its elements can be read or drawn alone."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch

from raymill.errors import ConfigError
from raymill.model.draws import Doubles, fill_drawn, normal, uniform

# Elements that are read at once where more are asked for, which bounds the memory in between.
PIECE = 1 << 22


class Values(ABC):
    """The elements of a tensor of `shape`, in row-major order."""

    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @abstractmethod
    def read(self, start: int, stop: int) -> torch.Tensor:
        """Return elements [start, stop), flat, on the host."""

    def whole(self) -> torch.Tensor:
        """Return the tensor in its shape."""
        return self.read(0, self.numel).view(self.shape)


def fill(out: torch.Tensor, values: Values, start: int = 0) -> None:
    """Write elements [start, start + len(out)) into a flat tensor of any device and floating dtype.

    They pass through fp32, so that a low-precision copy is the rounding of the fp32 weights.
    """
    for first in range(0, len(out), PIECE):
        part = out[first : first + PIECE]
        part.copy_(values.read(start + first, start + first + len(part)).float())


@dataclass(frozen=True)
class Held(Values):
    """Values in memory."""

    tensor: torch.Tensor

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return tuple(self.tensor.shape)

    def read(self, start: int, stop: int) -> torch.Tensor:
        return self.tensor.detach().reshape(-1)[start:stop].cpu()


@dataclass(frozen=True)
class Distribution:
    """A distribution of transformers' initialization: `normal` (mean, standard deviation), `uniform` (bounds),
    `truncated` (mean, standard deviation, bounds), `constant`, or the name of an operation that isn't known.

    The values are multiplied by `scale`.
    """

    kind: str
    numbers: tuple[float, ...] = ()
    scale: float = 1.0

    def draw(self, out: torch.Tensor, seed: int, name: str, start: int) -> None:
        """Write elements [start, start + len(out)) of the parameter of this name.

        Raises:
            ConfigError: the kind isn't known.
        """
        if self.kind == "constant":
            out.fill_(self.numbers[0] * self.scale)
            return
        draws = {"normal": normal, "uniform": uniform, "truncated": uniform}
        if self.kind not in draws:
            raise ConfigError(
                [
                    f"{name}: transformers initializes it by {self.kind}, which can't be done slice by slice; "
                    "start from a model that has it"
                ]
            )
        threads = torch.get_num_threads()
        fill_drawn(
            out.numpy(), draws[self.kind], self._transform(), seed, name, start, threads=threads
        )

    def _transform(self) -> Callable[[Doubles], Doubles]:
        first, second = self.numbers[:2]
        if self.kind == "normal":
            return lambda values: (first + second * values) * self.scale
        if self.kind == "uniform":
            return lambda values: (first + (second - first) * values) * self.scale
        # Quantiles of the part of the normal distribution that lies within the bounds.
        low, high = (
            0.5 * (1 + math.erf((bound - first) / second / math.sqrt(2)))
            for bound in self.numbers[2:]
        )

        def truncated(values: Doubles) -> Doubles:
            quantiles = torch.special.ndtri(torch.from_numpy(low + (high - low) * values))
            bounded = (first + second * quantiles).clamp_(*self.numbers[2:])
            result: Doubles = bounded.mul_(self.scale).numpy()
            return result

        return truncated


@dataclass(frozen=True)
class InitialValues(Values):
    """Initial values: a function of the seed, the parameter's name and the element's position.

    `parts` are (start, stop, what stands there: a distribution, or a tensor copied there); later ones replace
    earlier ones.
    """

    name: str
    seed: int
    shape: tuple[int, ...]
    parts: tuple[tuple[int, int, Distribution | Values], ...]

    def read(self, start: int, stop: int) -> torch.Tensor:
        out = torch.empty(stop - start)
        for first, last, content in self.parts:
            low, high = max(start, first), min(stop, last)
            if low >= high:
                continue
            part = out[low - start : high - start]
            if isinstance(content, Values):
                part.copy_(content.read(low - first, high - first))
            else:
                content.draw(part, self.seed, self.name, low)
        return out


@dataclass(frozen=True)
class WithRows(Values):
    """Values of a matrix, some of whose rows are replaced."""

    base: Values
    rows: Mapping[int, torch.Tensor] = field(repr=False)

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return self.base.shape

    def read(self, start: int, stop: int) -> torch.Tensor:
        out = self.base.read(start, stop).float()
        width = self.shape[1]
        for row in range(start // width, -(-stop // width)):
            if row in self.rows:
                low, high = max(start, row * width), min(stop, (row + 1) * width)
                out[low - start : high - start] = self.rows[row][
                    low - row * width : high - row * width
                ]
        return out
