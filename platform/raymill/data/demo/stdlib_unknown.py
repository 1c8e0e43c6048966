"""Names that don't exist, made of parts that do: `json.sqrt`, `collections.deque.popitem`.

Each is the owner of one fact and the last part of another. Both are drawn from the facts of one side
of the held-out split, every fact equally often, so that a part occurs in made-up names as often as in
real ones, and a part that training has never seen says nothing either.
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
from raymill.data.store.split import unit_hash

# Every class has these; not `dir(type)` alone, which a metaclass may add to.
_EVERY_CLASS = frozenset((*dir(object), *dir(type)))


@dataclass(frozen=True)
class MadeUp:
    """`owner` is the real fact whose owner it has, `leaf` the one whose last part."""

    name: str
    owner: Fact
    leaf: Fact


def made_up_names(
    real: Sequence[Fact], share: float, seed: int, taken: Collection[str] = ()
) -> list[MadeUp]:
    """About `share` times as many as there are facts with an owner; none of those `taken`."""
    found: dict[str, MadeUp] = {}
    for is_method in (False, True):
        pool = [f for f in real if f.owner and (f.kind == "method") == is_method]
        wanted = len(found) + round(share * len(pool))
        for attempt in range(8):
            owners = sorted(pool, key=lambda f: unit_hash(f"owner {attempt} {f.name}", seed))
            leaves = sorted(pool, key=lambda f: unit_hash(f"leaf {attempt} {f.name}", seed))
            for owner, leaf in zip(owners, leaves, strict=True):
                name = f"{owner.owner}.{leaf.leaf}"
                if len(found) >= wanted:
                    break
                if len(name) <= LONGEST_NAME and name not in taken and is_unknown(owner, leaf.leaf):
                    found.setdefault(name, MadeUp(name, owner, leaf))
    return list(found.values())


def is_unknown(sibling: Fact, leaf: str) -> bool:
    """Whether the owner of `sibling` surely has nothing of that name."""
    names = names_of(sibling.owner)
    return names is not None and leaf not in names


@cache
def names_of(owner: str) -> frozenset[str] | None:
    """All names of a public module or class, documented or not; None if some can't be known."""
    found: set[str] = set()
    places = _places().get(owner, [])
    modules = [find_module(owner), *(find_module(place) for place, name in places if not name)]
    for module in modules:
        if module:
            found |= _module_names(module.name, frozenset())
    for place, name in places:
        if name:
            members = _class_names(place, name, frozenset())
            if members is None:
                return None
            found |= members | _EVERY_CLASS
    return frozenset(found) if found else None


@lru_cache(maxsize=1)
def _places() -> dict[str, list[tuple[str, str]]]:
    """Where a public name is defined: a Python class and its C twin may share it."""
    places: dict[str, list[tuple[str, str]]] = {}
    for place, name in public_names().items():
        places.setdefault(name, []).append(place)
    for module, name in PUBLIC_NAMES.items():
        places.setdefault(name, []).append((module, ""))
    return places


def _module_names(name: str, trail: frozenset[str]) -> frozenset[str]:
    module = find_module(name)
    if module is None or name in trail:
        return frozenset()
    found = module.names | module.definitions.keys() | surfaces().get(name, {}).keys()
    found |= module.exported or frozenset()
    for star in module.stars:
        found |= _module_names(star, trail | {name})
    return frozenset(found)


def _class_names(
    module_name: str, name: str, trail: frozenset[tuple[str, str]]
) -> frozenset[str] | None:
    """Names of a class and its bases; None if a base can't be found."""
    module = find_module(module_name)
    if module is None or name not in module.classes:
        return None
    if (module_name, name) in trail:
        return frozenset()
    found = set(module.classes[name].names)
    for base in module.classes[name].bases:
        place = _resolve(module_name, re.sub(r"\[.*", "", base))
        above = _class_names(*place, trail | {(module_name, name)}) if place else None
        if above is None:
            return None
        found |= above
    return frozenset(found)


def _resolve(module_name: str, written: str) -> tuple[str, str] | None:
    """Where a base class is defined, from how a class statement writes it."""
    package, dot, name = written.rpartition(".")
    if not dot:
        return surfaces()[module_name].get(name) or surfaces()["builtins"].get(name)
    module = find_module(module_name)
    source, original = module.imported.get(package, ("", "")) if module else ("", "")
    target = f"{source}.{original}" if original else source or package
    return surfaces().get(target, {}).get(name)
