"""Validation of the names in `reward.functions` and of the verifiers that prompts name.

A name is a registered function, `module:function` of the user's own code (its module is imported: it is
named on the user's command line, and runs with the user's rights), or the address of a service.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from raymill.redaction import redacted_value
from raymill.rl.reward import sandbox
from raymill.rl.reward.functions import NO_VERIFIER, REWARDS, resolve
from raymill.rl.reward.http import address_problems, is_address
from raymill.rl.reward.task import RewardError
from raymill.schema.bind import nearest


def check_names(names: Iterable[str]) -> list[str]:
    """Return the problems of names in `reward.functions`, at most one per name; users' modules are imported."""
    return [text for name in names for text in _problems(name)]


def check_verifiers(verifiers: Iterable[str | None]) -> list[str]:
    """Return the problems of the verifiers that prompts name, which must be registered functions.

    Check the names of `reward.functions` first: a user's module may register functions when it is imported.
    """
    problems: list[str] = []
    for name in sorted({name for name in verifiers if name not in (None, NO_VERIFIER)}):
        if name in REWARDS:
            problems += _problems(name)
        else:
            problems.append(
                f"verifier {name!r}: isn't registered{nearest(name, [*REWARDS])}; prompts may name "
                f"{', '.join(sorted(REWARDS))}; functions of your own go into reward.functions"
            )
    return problems


def _problems(name: str) -> Iterator[str]:
    if is_address(name):
        yield from (f"{redacted_value(name)}: {text}" for text in address_problems(name))
        return
    try:
        resolve(name)
    except RewardError as error:
        yield f"reward function {name!r}: {error}"
        return
    if name == "code" and (why := sandbox.unavailable()):
        yield f"reward function 'code': {why}"
