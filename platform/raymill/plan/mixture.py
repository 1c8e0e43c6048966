"""Weights of a mixture over a run, from the configuration: where they change, and how long a source lasts."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction

from raymill.data.store.mixture import Change
from raymill.schema.data_sections import RowsConfig

# A step, or a share of the run.
_POINT = re.compile(r"(?P<step>\d+)|(?P<percent>\d+(\.\d+)?)%")


def change_step(point: str, steps: int) -> int:
    """Return the number of steps before a change: `9000`, or `90%` of the run's `steps`, rounded up."""
    match = _POINT.fullmatch(point)
    assert match is not None, "the checks refuse other spellings"
    if match["step"]:
        return int(match["step"])
    share = Fraction(match["percent"]) / 100 * steps
    return -(-share.numerator // share.denominator)


def mixture_changes(data: RowsConfig, steps: int, global_batch: int) -> tuple[Change, ...]:
    """Return the changes of `data.mixture_changes`, in the order of the samples they begin with.

    Of changes at the same step, as shares of a short run may be, the last one typed is left.
    """
    points = {change_step(point, steps): point for point in data.mixture_changes}
    return tuple(
        Change(
            step * global_batch,
            tuple(data.mixture_changes[points[step]].get(name, 0.0) for name in data.mixture),
        )
        for step in sorted(points)
    )


def max_epochs(data: RowsConfig) -> tuple[float | None, ...]:
    """Return the epochs of each source at most, in the order of the mixture; this data alone has no limit."""
    return tuple(data.max_epochs.get(name) for name in data.mixture) or (None,)


def mixture_problems(data: RowsConfig) -> Iterator[str]:
    """Yield every contradiction in a mixture's settings."""
    weights = [data.mixture, *data.mixture_changes.values()]
    keys = ["data.mixture", *(f"data.mixture_changes[{point}]" for point in data.mixture_changes)]
    for key, part in zip(keys, weights, strict=True):
        for name, weight in part.items():
            if not (weight >= 0 and weight != float("inf")):
                yield f"{key}[{name}]={weight}: must be a number of at least 0"
            yield from _unknown(key, name, data.mixture)
        if (key != "data.mixture" or part) and not any(weight > 0 for weight in part.values()):
            yield f"{key}: gives no source a weight; a run draws from one at least at any time"
    for name in data.mixture:
        if not any(part.get(name, 0) > 0 for part in weights):
            yield f"data.mixture[{name}]: its weight is 0 at all times; leave it out, or give it one"
    for point in data.mixture_changes:
        match = _POINT.fullmatch(point)
        if (
            match is None
            or float(match["step"] or match["percent"]) == 0
            or (match["percent"] and float(match["percent"]) >= 100)
        ):
            yield (
                f"data.mixture_changes[{point}]: expected the step after which weights change, as in 9000, "
                "or a share of the run between 0% and 100%, as in 90%"
            )
    for name, epochs in data.max_epochs.items():
        if not epochs > 0:
            yield f"data.max_epochs[{name}]={epochs}: must be above 0"
        yield from _unknown("data.max_epochs", name, data.mixture)


def _unknown(key: str, name: str, mixture: Mapping[str, float]) -> Iterator[str]:
    if name not in mixture:
        names: Sequence[str] = list(mixture)
        has = f"has {', '.join(names)}" if names else "is empty"
        yield f"{key}[{name}]: isn't a prepared folder of data.mixture, which {has}"
