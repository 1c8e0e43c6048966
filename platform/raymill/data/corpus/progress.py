"""Progress of a stage of a corpus in one line: `[clean 3/12] 24.1 of 96.3 MB, 2.1 MB/s, 34 s left`."""

from __future__ import annotations

import time
from collections.abc import Sized
from types import TracebackType
from typing import Self

from raymill.progress_line import MEASURED_BYTES, ProgressLine, rate_text

PLAIN_EVERY_S = 5.0


class StageProgress:
    """Line of a stage whose units are counted; those without bytes of input count alike."""

    def __init__(self, stage: str, units: object, input_bytes: int) -> None:
        self._line = ProgressLine(PLAIN_EVERY_S, patient=True)
        self._stage, self._total_bytes = stage, input_bytes
        self._units = len(units) if isinstance(units, Sized) else None
        self._started = time.monotonic()
        self._finished = self._earlier = self._bytes = self._bytes_earlier = 0

    def __enter__(self) -> Self:
        self._line.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._line.__exit__(kind, error, trace)
        if self._earlier and kind is None and self._earlier < self._finished:
            self._line.say(
                f"{self._stage}: {self._earlier} of {self._finished} units were finished by an "
                "earlier try."
            )

    def done(self, input_bytes: int, *, earlier: bool) -> None:
        """Count one unit; with `earlier`, an earlier try had finished it."""
        self._finished += 1
        self._bytes += input_bytes
        if earlier:
            self._earlier += 1
            self._bytes_earlier += input_bytes
        self._line.show(self._text(time.monotonic() - self._started))

    def _text(self, seconds: float) -> str:
        of_all = "" if self._units is None else f"/{self._units}"
        start = f"[{self._stage} {self._finished}{of_all}]"
        seconds = max(seconds, 1e-9)
        if self._total_bytes < MEASURED_BYTES:
            done = self._finished - self._earlier
            if self._units is None or not done:
                return start
            return f"{start} {(self._units - self._finished) * seconds / done:.0f} s left"
        return f"{start} {rate_text(self._bytes, self._total_bytes, self._bytes_earlier, seconds)}"
