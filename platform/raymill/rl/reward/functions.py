"""The reward functions that have names. Each is a few lines; `register` adds another.

What compares with a reference looks at what follows the answer's reasoning, and `regex` at all of it.

A function takes a Sample and returns a number. It may raise, hang or die: the pool that calls it (see
pool.py) makes an error of that, which costs one sample. An answer that is merely wrong is worth 0.
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
COMPARING: set[str] = set()  # names of those that can say nothing without a reference
AUTO = "auto"
NO_VERIFIER = "none"  # how a record spells that it names none
REGEX_SECONDS = 2.0


def register(name: str, *, compares: bool = False) -> Callable[[RewardFunction], RewardFunction]:
    """Give a function a name, under which configurations and prompts can ask for it.

    `compares`: it needs a reference, and a run whose prompts have none is refused before it starts.

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
    """The function of a name: a registered one, or `module:function`, whose module is imported.

    That is the user's own code, named on the user's command line; it runs with the user's rights. It
    is found where Python finds modules, and last in the working directory.

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
        found = importlib.import_module(module_name)
        for part in path.split("."):
            found = getattr(found, part)
    except (Exception, SystemExit) as error:  # the user's module may raise anything
        raise RewardError(f"import failed: {name}, {type(error).__name__}: {error}") from error
    if not callable(found):
        raise RewardError(f"import failed: {name} is {type(found).__name__}, not a function")
    return found


@register(AUTO)
def auto(sample: Sample) -> float:
    """What the function says that the sample's own prompt names.

    Prompts are data, often of strangers: they name registered functions only, never code to import
    or an address to call.
    """
    name = sample.verifier
    if name is None or name == NO_VERIFIER:
        raise RewardError("no verifier: the prompt names none; name a function for all instead")
    if name == AUTO or name not in REWARDS:
        raise RewardError(f"unknown verifier: the prompt names {name[:100]!r}{_nearest(name)}")
    return REWARDS[name](sample)


@register("exact", compares=True)
def exact(sample: Sample) -> float:
    r"""1 if the final answer is the reference's: the same number, or the same text but for case, space and
    typesetting. What follows the reasoning counts, and in it what stands after the last `####` or `Answer:`
    or in `\boxed{…}`, in both."""
    expected = final_answer(_reference(sample))
    return float(same_answer(final_answer(sample.answer_text, sample.in_reasoning), expected))


@register("contains", compares=True)
def contains(sample: Sample) -> float:
    """1 if the reference stands in the answer, whatever case and white space."""
    wanted = " ".join(after_reasoning(_reference(sample)).casefold().split())
    if not wanted:
        raise RewardError("empty reference: every answer contains it")
    return float(wanted in " ".join(sample.said.casefold().split()))


@register("regex", compares=True)
def regex(sample: Sample) -> float:
    r"""1 if the reference, a regular expression, matches somewhere in the answer (`\A…\Z`: all of it)."""
    try:
        pattern = re.compile(_reference(sample))
    except re.error as error:
        raise RewardError(f"broken reference: not a regular expression, {error}") from None
    seconds = min(REGEX_SECONDS, time_left_s())
    with _interrupted_after(seconds):
        return float(pattern.search(sample.answer_text) is not None)


@register("answer_f1", compares=True)
def answer_f1(sample: Sample) -> float:
    """Token F1 of the answer and the reference, as in SQuAD (see evaluate/answers.py)."""
    return token_f1(sample.said, after_reasoning(_reference(sample)))


@register("right_or_honest", compares=True)
def right_or_honest(sample: Sample) -> float:
    """1 for the reference, 0.3 for an answer that begins with "I don't know", 0 for any other."""
    return POINTS[verdict(sample.said, after_reasoning(_reference(sample)))]


@register("length")
def length(sample: Sample) -> float:
    """Tokens of the answer, the end of turn included; negative weights make answers short."""
    return float(len(sample.answer_ids))


@register("ended")
def ended(sample: Sample) -> float:
    """1 if the model ended its turn itself, 0 if it was cut off."""
    return float(sample.finished)


@register("token_share")
def token_share(sample: Sample) -> float:
    """Share of the answer's tokens that are among `extra["tokens"]`: a reward with a known optimum."""
    wanted = sample.extra.get("tokens")
    if wanted is None:
        raise RewardError(
            "no tokens: token_share needs the prompt's extra['tokens'], a list of ids"
        )
    among = set(wanted)
    return sum(token in among for token in sample.answer_ids) / max(len(sample.answer_ids), 1)


@register("code", compares=True)
def code(sample: Sample) -> float:
    """1 if the answer's last block of Python code (or else all of it) passes the reference's tests.

    The tests are Python that follows the answer's code in the same module, and raises if it is wrong.
    How it is confined stands in sandbox.py. As in any checker that runs both in one interpreter,
    a reward is only as good as its tests: code that returns objects equal to everything passes them.
    """
    seconds = min(sandbox.WALL_SECONDS, time_left_s())
    return float(sandbox.passes(sandbox.last_code(sample.said), _reference(sample), seconds))


def _nearest(name: str) -> str:
    """Said here, since a worker that imported `config` for it would start slowly."""
    return "".join(f"; did you mean {near}?" for near in get_close_matches(name, REWARDS, n=1))


def _reference(sample: Sample) -> str:
    if sample.reference is None:
        raise RewardError("no reference: this function compares with the prompt's, which has none")
    if sample.reference.strip() and not after_reasoning(sample.reference).strip():
        raise RewardError("no reference: nothing follows the reasoning in the prompt's")
    return sample.reference


@contextmanager
def _interrupted_after(seconds: float) -> Iterator[None]:
    """Limit the time of a match, during which the re module looks at signals but lets nothing else run.

    Signals belong to the main thread; in others only the pool's limit holds.
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
