"""Reward functions that behave, and that misbehave in every way a worker must survive."""

from __future__ import annotations

import ctypes
import os
import random
import subprocess
import sys
import time
from typing import Any

from raymill.rl.reward.functions import register
from raymill.rl.reward.task import Sample, time_left_s


def behave(sample: Sample) -> float:
    return float(sample.answer_text)


def behave_slowly(sample: Sample) -> float:
    time.sleep(random.random() / 20)
    return float(sample.answer_text)


def draw(sample: Sample) -> float:
    """Return values that differ between processes by default: random numbers, the order of sets."""
    return random.random() + list({"a", "b", "c", "d"}).index("c")


def raises(sample: Sample) -> float:
    raise KeyError(sample.answer_text)


def leaves(sample: Sample) -> float:
    sys.exit(3)


def hangs(sample: Sample) -> float:
    while True:
        time.sleep(1)


def uses_all_its_time(sample: Sample) -> float:
    """Stops by itself, as late as it may."""
    time.sleep(time_left_s())
    return 1.0


def hangs_in_c(sample: Sample) -> float:
    """Never gives way to Python: no signal handler and no other thread runs."""
    return float(ctypes.PyDLL(None).sleep(600))


def hangs_with_a_child(sample: Sample) -> float:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    with open(sample.answer_text, "w", encoding="ascii") as stream:
        stream.write(str(child.pid))
    return hangs(sample)


def exits(sample: Sample) -> float:
    os._exit(7)


def crashes(sample: Sample) -> float:
    ctypes.string_at(0)
    return 0.0


def prints(sample: Sample) -> float:
    print("garbage \0 { " * 1000, flush=True)
    os.write(1, b"\xff" * 5000)
    sys.stderr.flush()
    return 1.0


def reads(sample: Sample) -> float:
    return float(len(sys.stdin.read()))


def closes_everything(sample: Sample) -> float:
    os.closerange(3, 100)
    return 1.0


def hogs(sample: Sample) -> float:
    return float(len(bytearray(10**9)))


def answers_long(sample: Sample) -> float:
    raise ValueError("x" * 10**6)


def returns(sample: Sample) -> Any:
    return {
        "nan": float("nan"), "infinity": float("inf"), "none": None, "text": "1.0", "bool": True,
        "integer": 3, "huge": 10**400, "list": [1.0], "complex": 1j,
    }[sample.answer_text]  # fmt: skip


@register("tests_own")
def own(sample: Sample) -> float:
    return 0.25


not_a_function = 3
