"""Steps that `data.cleaning` declares, made from their names and parameters.

Every entry may have four keys that aren't parameters of its step: `step` (the class, where the key is
another name), `annotate`, `max_dropped`, and `languages` (other parameters, by language code).
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import asdict
from functools import cache
from typing import Any, cast

from raymill.data.corpus import cleaning as room
from raymill.data.corpus.cleaning.step import STEPS, CleaningStep, DeclaredStep
from raymill.durable import JsonObject
from raymill.schema.bind import bind_section, convert, nearest

Declarations = Mapping[str, Mapping[str, object]]
KEY = "data.cleaning"
OWN_KEYS = ("step", "annotate", "max_dropped", "languages")


def known_steps() -> dict[str, type[CleaningStep]]:
    """Return all steps by name; every module of the room `cleaning` may register some."""
    _import_steps()
    return dict(sorted(STEPS.items()))


@cache
def _import_steps() -> None:
    for module in pkgutil.iter_modules(room.__path__):
        importlib.import_module(f"{room.__name__}.{module.name}")


def declared_steps(declarations: Declarations, problems: list[str]) -> tuple[DeclaredStep, ...]:
    """Make the steps in their order; append to `problems` what doesn't fit, by the key that a user types."""
    steps = []
    for name, entry in declarations.items():
        before = len(problems)
        step = _declared(name, entry, problems)
        if step is not None and len(problems) == before:
            steps.append(step)
    return tuple(steps)


def described(declared: DeclaredStep) -> JsonObject:
    """Return everything that the decisions of a step depend on, as JSON.

    A step that reads files has a method `fingerprint`, which returns a digest of them; one whose decisions
    have changed has another `version`.
    """
    steps = {"": declared.step, **declared.languages}
    return {
        "key": declared.key,
        "step": declared.step.name,
        "annotate": declared.annotate,
        "parameters": {language: asdict(cast(Any, step)) for language, step in steps.items()},
        "version": getattr(declared.step, "version", 1),
        "files": [step.fingerprint() for step in steps.values() if hasattr(step, "fingerprint")],
    }


def _declared(key: str, entry: Mapping[str, object], problems: list[str]) -> DeclaredStep | None:
    prefix = f"{KEY}.{key}"
    known = known_steps()
    chosen = str(entry.get("step", key))
    if chosen not in known:
        where = f"{prefix}.step={chosen}" if "step" in entry else prefix
        listed = ", ".join(known) or "none"
        problems.append(
            f"{where}: there is no such step{nearest(chosen, [*known])}; there are {listed}"
        )
        return None
    annotate = convert(bool, entry.get("annotate", False), f"{prefix}.annotate", problems)
    limit = convert(float, entry.get("max_dropped", 1.0), f"{prefix}.max_dropped", problems)
    if isinstance(limit, float) and not 0 <= limit <= 1:
        problems.append(f"{prefix}.max_dropped={limit:g}: must be from 0 to at most 1")
    parameters = {name: value for name, value in entry.items() if name not in OWN_KEYS}
    step = bind_section(known[chosen], parameters, prefix, problems)
    languages = {}
    changes = _changes_by_language(prefix, entry, problems)
    # Parameters that are wrong for all languages would be reported for each again.
    for language, changed in changes.items() if step is not None else ():
        where = f"{prefix}.languages.{language}"
        other = bind_section(known[chosen], {**parameters, **changed}, where, problems)
        if other is not None:
            languages[language] = other
    return None if step is None else DeclaredStep(key, step, languages, annotate, limit)


def _changes_by_language(
    prefix: str, entry: Mapping[str, object], problems: list[str]
) -> dict[str, dict[str, object]]:
    languages = entry.get("languages", {})
    if isinstance(languages, Mapping):
        # YAML reads Norwegian's code as a truth value.
        problems.extend(
            f"{prefix}.languages: {code!r} is no language code; write 'no' in quotation marks"
            if code is False
            else f"{prefix}.languages: {code!r} is no language code"
            for code in languages
            if not isinstance(code, str)
        )
    changes = convert(dict[str, dict[str, object]], languages, f"{prefix}.languages", problems)
    return cast(dict[str, dict[str, object]], changes or {})
