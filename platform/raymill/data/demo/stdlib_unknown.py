"""Made-up names with real parts: `json.sqrt`, `collections.deque.popitem`.

Each combines the owner of one fact with the last part of another. Both are drawn from the facts of
one split, every fact equally often, so that a part is as frequent in made-up names as in real ones,
and a part that training has never seen reveals nothing either.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache

from raymill.data.demo.stdlib_facts import (
    LONGEST_NAME,
    PUBLIC_NAMES,
    Fact,
    find_module,
    public_names,
    surfaces,
)
from raymill.data.store.split import hash_fraction

# Every class has these; not `dir(type)` alone, which a metaclass may add to.
_EVERY_CLASS = frozenset((*dir(object), *dir(type)))


@dataclass(frozen=True)
class MadeUp:
    """Made-up name; `owner` and `leaf` are the real facts that its two parts come from."""

    name: str
    owner: Fact
    leaf: Fact


def made_up_names(
    real: Sequence[Fact], share: float, seed: int, taken: Collection[str] = ()
) -> list[MadeUp]:
    """Return about `share` made-up names per fact with an owner, none of them in `taken`."""
    by_name: dict[str, MadeUp] = {}
    for is_method in (False, True):
        pool = [f for f in real if f.owner and (f.kind == "method") == is_method]
        wanted = len(by_name) + round(share * len(pool))
        for attempt in range(8):
            # Two independent orders pair each owner with a random last part.
            owners = sorted(pool, key=lambda f: hash_fraction(f"owner {attempt} {f.name}", seed))
            leaves = sorted(pool, key=lambda f: hash_fraction(f"leaf {attempt} {f.name}", seed))
            for owner, leaf in zip(owners, leaves, strict=True):
                name = f"{owner.owner}.{leaf.leaf}"
                if len(by_name) >= wanted:
                    break
                if len(name) <= LONGEST_NAME and name not in taken and is_unknown(owner, leaf.leaf):
                    by_name.setdefault(name, MadeUp(name, owner, leaf))
    return list(by_name.values())


def is_unknown(sibling: Fact, leaf: str) -> bool:
    """Return whether the owner of `sibling` certainly has nothing of that name."""
    names = names_of(sibling.owner)
    return names is not None and leaf not in names


@cache
def names_of(owner: str) -> frozenset[str] | None:
    """Return all names of a public module or class, documented or not; None if some can't be
    known."""
    names: set[str] = set()
    locations = _locations().get(owner, [])
    modules = [
        find_module(owner),
        *(find_module(location) for location, name in locations if not name),
    ]
    for module in modules:
        if module:
            names |= _module_names(module.name, frozenset())
    for location, name in locations:
        if name:
            members = _class_names(location, name, frozenset())
            # A name may come from a base that can't be read, so nothing is certain.
            if members is None:
                return None
            names |= members | _EVERY_CLASS
    return frozenset(names) if names else None


@lru_cache(maxsize=1)
def _locations() -> dict[str, list[tuple[str, str]]]:
    """Return the locations where a public name is defined: a Python class and its C twin may share
    it."""
    locations: dict[str, list[tuple[str, str]]] = {}
    for location, name in public_names().items():
        locations.setdefault(name, []).append(location)
    for module, name in PUBLIC_NAMES.items():
        locations.setdefault(name, []).append((module, ""))
    return locations


def _module_names(name: str, trail: frozenset[str]) -> frozenset[str]:
    module = find_module(name)
    if module is None or name in trail:
        return frozenset()
    names = module.names | module.definitions.keys() | surfaces().get(name, {}).keys()
    names |= module.exported or frozenset()
    for star in module.stars:
        names |= _module_names(star, trail | {name})
    return frozenset(names)


def _class_names(
    module_name: str, name: str, trail: frozenset[tuple[str, str]]
) -> frozenset[str] | None:
    """Return the names of a class and its bases; None if a base can't be found."""
    module = find_module(module_name)
    if module is None or name not in module.classes:
        return None
    if (module_name, name) in trail:
        return frozenset()
    names = set(module.classes[name].names)
    for base in module.classes[name].bases:
        location = _resolve(module_name, re.sub(r"\[.*", "", base))
        above = _class_names(*location, trail | {(module_name, name)}) if location else None
        if above is None:
            return None
        names |= above
    return frozenset(names)


def _resolve(module_name: str, written: str) -> tuple[str, str] | None:
    """Return the location of a base class, from its spelling in a class statement."""
    package, dot, name = written.rpartition(".")
    if not dot:
        return surfaces()[module_name].get(name) or surfaces()["builtins"].get(name)
    module = find_module(module_name)
    source, original = module.imported.get(package, ("", "")) if module else ("", "")
    target = f"{source}.{original}" if original else source or package
    return surfaces().get(target, {}).get(name)
