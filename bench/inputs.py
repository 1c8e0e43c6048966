"""Fuzzing of preparation: the numbers of hostile inputs that are used, counted as bad, refused by name, and
that crash.

    PYTHONPATH=platform:tests .venv/bin/python bench/inputs.py [--inputs 3000]

The inputs are those of tests/data/hostile.py: JSON values, encodings, archives and tables of any kind.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

from data.hostile import INPUTS, Input
from data.preparer import Preparer, judged
from hypothesis import HealthCheck, Phase, given, seed, settings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    outcomes: Counter[str] = Counter()
    crashes: Counter[str] = Counter()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        preparer = Preparer(Path(folder))

        @seed(arguments.seed)
        @settings(
            max_examples=arguments.inputs,
            database=None,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=[*HealthCheck],
        )
        @given(INPUTS)
        def attempt(sample: Input) -> None:
            try:
                outcomes[judged(preparer, sample)] += 1
            except Exception as error:  # noqa: BLE001  (any other exception counts as a crash)
                outcomes["crashed"] += 1
                frames = traceback.extract_tb(error.__traceback__)
                last = [
                    frame for frame in frames if "raymill" in frame.filename or frame is frames[-1]
                ][-1]
                where = f"{Path(last.filename).name}:{last.lineno}"
                line = f"{sample.ending} {type(error).__name__} {where} {str(error)[:90]!r}"
                crashes[line] += 1

        attempt()
    seconds = time.monotonic() - started
    print(f"{sum(outcomes.values())} inputs in {seconds:.0f} s: {dict(outcomes)}")
    for line, count in crashes.most_common():
        print(f"  {count:5} {line}")


if __name__ == "__main__":
    main()
