"""Registered reward functions. Each is a few lines; `register` adds another.

Functions that compare with a reference look at the text after the answer's reasoning; `regex` looks at all
of it.

A function takes a Sample and returns a number. It may raise, hang or die: the pool that calls it (see
pool.py) turns this into an error, which costs one sample. An answer that is merely wrong gets 0.
"""

from __future__ import annotations

import importlib
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches

from raymill.evaluate.answers import POINTS, token_f1, verdict
from raymill.evaluate.reasoning import after_reasoning
from raymill.rl.reward import sandbox
from raymill.rl.reward.final_answer import final_answer, same_answer
from raymill.rl.reward.task import RewardError, Sample, time_left_s

RewardFunction = Callable[[Sample], float]
REWARDS: dict[str, RewardFunction] = {}
# Names of functions that need a reference.
COMPARING: set[str] = set()
AUTO = "auto"
# Verifier of a prompt's record that means none.
NO_VERIFIER = "none"
REGEX_SECONDS = 2.0


def register(name: str, *, compares: bool = False) -> Callable[[RewardFunction], RewardFunction]:
    """Register a function under a name for configurations and prompts.

    `compares`: it needs a reference; a run whose prompts have none is refused before it starts.

    Raises:
        ValueError: the name is taken.
    """

    def add(function: RewardFunction) -> RewardFunction:
        if name in REWARDS:
            raise ValueError(f"reward {name!r} is registered already, as {REWARDS[name]!r}")
        REWARDS[name] = function
        if compares:
            COMPARING.add(name)
        return function

    return add


def resolve(name: str) -> RewardFunction:
    """Return the function of a name: a registered one, or `module:function`, whose module is imported.

    Such a module is the user's own code, named on the user's command line, and runs with the user's rights.
    It is found on Python's module path, and last in the working directory.

    Raises:
        RewardError: there is none; the message begins with `unknown function` or `import failed`.
    """
    if name in REWARDS:
        return REWARDS[name]
    module_name, colon, path = name.partition(":")
    if not (colon and module_name and path):
        raise RewardError(
            f"unknown function: {name!r} isn't registered{_nearest(name)}; there are "
            f"{', '.join(sorted(REWARDS))}, module:function of your own, and http addresses"
        )
    try:
        if os.getcwd() not in sys.path:
            sys.path.append(os.getcwd())
        target = importlib.import_module(module_name)
        for part in path.split("."):
            target = getattr(target, part)
    # The user's module may raise anything.
    except (Exception, SystemExit) as error:
        raise RewardError(f"import failed: {name}, {type(error).__name__}: {error}") from error
    if not callable(target):
        raise RewardError(f"import failed: {name} is {type(target).__name__}, not a function")
    return target


@register(AUTO)
def auto(sample: Sample) -> float:
    """Return the reward of the function that the sample's own prompt names.

    Prompts are data, often from strangers: they may only name registered functions, never code to import or an
    address to call.
    """
    name = sample.verifier
    if name is None or name == NO_VERIFIER:
        raise RewardError("no verifier: the prompt names none; name a function for all instead")
    if name == AUTO or name not in REWARDS:
        raise RewardError(f"unknown verifier: the prompt names {name[:100]!r}{_nearest(name)}")
    return REWARDS[name](sample)


@register("exact", compares=True)
def exact(sample: Sample) -> float:
    r"""Return 1 if the final answer equals the reference's, else 0.

    Equal are the same numbers, and texts that only differ in case, space and typesetting. The final answer
    is taken from the text after the reasoning, in both: after the last `####` or `Answer:`, or in
    `\boxed{…}`.
    """
    expected = final_answer(_reference(sample))
    return float(same_answer(final_answer(sample.answer_text, sample.in_reasoning), expected))


@register("contains", compares=True)
def contains(sample: Sample) -> float:
    """Return 1 if the answer contains the reference, ignoring case and white space, else 0."""
    expected = " ".join(after_reasoning(_reference(sample)).casefold().split())
    if not expected:
        raise RewardError("empty reference: every answer contains it")
    return float(expected in " ".join(sample.final_text.casefold().split()))


@register("regex", compares=True)
def regex(sample: Sample) -> float:
    r"""Return 1 if the reference, a regular expression, matches anywhere in the answer (`\A…\Z`: all of it)."""
    try:
        pattern = re.compile(_reference(sample))
    except re.error as error:
        raise RewardError(f"broken reference: not a regular expression, {error}") from None
    seconds = min(REGEX_SECONDS, time_left_s())
    with _interrupted_after(seconds):
        return float(pattern.search(sample.answer_text) is not None)


@register("answer_f1", compares=True)
def answer_f1(sample: Sample) -> float:
    """Return the token F1 of the answer and the reference, as in SQuAD (see evaluate/answers.py)."""
    return token_f1(sample.final_text, after_reasoning(_reference(sample)))


@register("right_or_honest", compares=True)
def right_or_honest(sample: Sample) -> float:
    """Return 1 for the reference, 0.3 for an answer that begins with "I don't know", 0 for any other."""
    return POINTS[verdict(sample.final_text, after_reasoning(_reference(sample)))]


@register("length")
def length(sample: Sample) -> float:
    """Return the number of tokens, the end of turn included; a negative weight makes answers shorter."""
    return float(len(sample.answer_ids))


@register("ended")
def ended(sample: Sample) -> float:
    """Return 1 if the model ended its turn itself, 0 if it was cut off."""
    return float(sample.finished)


@register("token_share")
def token_share(sample: Sample) -> float:
    """Return the share of the answer's tokens that are in `extra["tokens"]`: a reward with a known optimum."""
    tokens = sample.extra.get("tokens")
    if tokens is None:
        raise RewardError(
            "no tokens: token_share needs the prompt's extra['tokens'], a list of ids"
        )
    rewarded = set(tokens)
    return sum(token in rewarded for token in sample.answer_ids) / max(len(sample.answer_ids), 1)


@register("code", compares=True)
def code(sample: Sample) -> float:
    """Return 1 if the answer's last block of Python code (or else all of it) passes the reference's tests.

    The tests are Python that is run after the answer's code in the same module, and raises if the code is
    wrong. See sandbox.py for its confinement. As in any checker that runs both in one interpreter, a reward
    is only as good as its tests: code that returns objects equal to everything passes them.
    """
    seconds = min(sandbox.WALL_SECONDS, time_left_s())
    return float(sandbox.passes(sandbox.last_code(sample.final_text), _reference(sample), seconds))


def _nearest(name: str) -> str:
    # Not `config`'s function of the same purpose: importing `config` would slow the start of every worker.
    return "".join(f"; did you mean {near}?" for near in get_close_matches(name, REWARDS, n=1))


def _reference(sample: Sample) -> str:
    if sample.reference is None:
        raise RewardError("no reference: this function needs one, and the prompt has none")
    if sample.reference.strip() and not after_reasoning(sample.reference).strip():
        raise RewardError("no reference: nothing follows the reasoning in the prompt's reference")
    return sample.reference


@contextmanager
def _interrupted_after(seconds: float) -> Iterator[None]:
    """Limit the time of a match, which only a signal can interrupt: the re module lets no other thread run.

    Signals are handled by the main thread; in other threads only the pool's limit holds.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: object) -> None:
        raise RewardError(f"timeout: the regular expression took longer than {seconds:.1f} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.01))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
