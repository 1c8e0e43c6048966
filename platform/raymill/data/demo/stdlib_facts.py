"""Facts about each public function, class and module of the running Python.

A fact is a name, its arguments, and the first sentence of its documentation. A definition goes by
its shortest public name: `asyncio.gather` is defined in `asyncio.tasks`, `heapq.heappush` in
`_heapq`, `os.path.join` in `posixpath`.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from raymill.data.demo import stdlib_corpus
from raymill.data.demo.stdlib_source import Definition, Module, c_modules, python_modules
from raymill.data.demo.stdlib_wording import called_with, first_sentence

Kind = Literal["function", "class", "method", "module"]

# Unwanted, obsolete, of another system, or internal to a package.
LEFT_OUT = (
    "asynchat asyncio.base_futures asyncio.format_helpers asyncio.sslproto asyncio.staggered "
    "asyncio.trsock asyncio.windows_events asyncio.windows_utils asyncore ctypes.macholib ensurepip "
    "genericpath imp importlib.resources.simple lib2to3 multiprocessing.forkserver multiprocessing.heap "
    "multiprocessing.popen_spawn_win32 multiprocessing.reduction multiprocessing.resource_sharer "
    "multiprocessing.resource_tracker multiprocessing.spawn multiprocessing.util ntpath nturl2path "
    "pickletools posix pydoc smtpd sre_compile sre_constants sre_parse tkinter.tix xml.dom.expatbuilder "
    "xxsubtype"
)
PUBLIC_NAMES = {"posixpath": "os.path", "builtins": ""}
LONGEST_NAME = 48


@dataclass(frozen=True)
class Fact:
    """One documented name, such as `json.JSONDecoder.decode` with `owner` and `leaf` before and
    after the last dot.

    `arguments`: their names, None if unknown. `signature`: "(obj, *, indent=None)", None if
    unknown. `family`: that of the source in the pretraining corpus.
    """

    name: str
    kind: Kind
    owner: str
    leaf: str
    text: str
    arguments: tuple[str, ...] | None
    signature: str | None
    family: str


@lru_cache(maxsize=1)
def facts() -> tuple[Fact, ...]:
    """Return every fact, sorted by name."""
    by_name: dict[str, Fact] = {}
    for fact in (*_module_facts(), *_definition_facts()):
        by_name.setdefault(fact.name, fact)
    return tuple(fact for _, fact in sorted(by_name.items()))


@lru_cache(maxsize=1)
def public_names() -> dict[tuple[str, str], str]:
    """Return the public name of each top-level definition of a module, by (module, name)."""
    names: dict[tuple[str, str], str] = {}
    for module in sorted(
        (*_public_modules(), "builtins"), key=lambda name: (name.count("."), name)
    ):
        for local, defined in sorted(surfaces()[module].items()):
            if local.startswith("_") or not _speaks_for(module, local, defined):
                continue
            shown = PUBLIC_NAMES.get(module, module)
            name = f"{shown}.{local}" if shown else local
            known = names.get(defined)
            if known is None or _twin(module, defined[0]) > _twin(
                known.partition(".")[0], defined[0]
            ):
                names[defined] = name
    # socket.socket(_socket.socket) has its methods in the private base class.
    for python in python_modules().values():
        for local, of_class in python.classes.items():
            for base in of_class.bases:
                inside, _, same = base.rpartition(".")
                if same == local and inside.startswith("_") and (python.name, local) in names:
                    names.setdefault((inside, same), names[python.name, local])
    return names


@lru_cache(maxsize=1)
def surfaces() -> dict[str, dict[str, tuple[str, str]]]:
    """Return, for each module, the top-level names that lead to a definition, and its location.

    Modules import each other in cycles, so names are passed on until nothing changes.
    """
    modules = {**c_modules(), **python_modules()}
    definitions = {name: _own(module) for name, module in modules.items()}
    changed = True
    while changed:
        before = sum(map(len, definitions.values()))
        for name, module in modules.items():
            for local, (source, original) in _imports(module, modules, definitions):
                target = definitions.get(source, {}).get(original)
                if target:
                    definitions[name].setdefault(local, target)
        changed = sum(map(len, definitions.values())) > before
    return definitions


def _own(module: Module) -> dict[str, tuple[str, str]]:
    # Methods are left out; they follow their class.
    names = {name for name in module.definitions if "." not in name} | module.classes.keys()
    return {name: (module.name, name) for name in sorted(names)}


def _imports(
    module: Module, modules: dict[str, Module], definitions: dict[str, dict[str, tuple[str, str]]]
) -> Iterator[tuple[str, tuple[str, str]]]:
    """Yield (local name, (module, name there)), including those of `import *`."""
    yield from module.imported.items()
    for star in module.stars:
        exported = modules[star].exported if star in modules else None
        for name in list(definitions.get(star, {})):
            if exported is None or name in exported:
                yield name, (star, name)


def find_module(name: str) -> Module | None:
    """Return a Python module, or else the C module of that name."""
    return python_modules().get(name) or c_modules().get(name)


def _public_modules() -> list[str]:
    left_out = LEFT_OUT.split()
    return [
        name
        for name in sorted({*python_modules(), *c_modules()})
        if not any(part.startswith("_") for part in name.split("."))
        and not any(name == prefix or name.startswith(f"{prefix}.") for prefix in left_out)
        and name != "builtins"
    ]


def _speaks_for(module: str, local: str, defined: tuple[str, str]) -> bool:
    """Return whether a module may give its name to a definition of another module."""
    source = defined[0]
    if source == module or source.startswith(f"{module}."):
        return True
    exported = python_modules()[module].exported if module in python_modules() else None
    if exported is not None and local not in exported:
        return False
    # A public module may only speak for private ones.
    private = source.startswith("_") or source in ("genericpath", "posix")
    return private and (exported is not None or bool(_twin(module, source)))


def _twin(public: str, private: str) -> bool:
    """Return whether a private module implements a public one, as `_heapq` implements `heapq`."""
    pairs = {"posix": "os", "genericpath": "posixpath", "_collections_abc": "collections.abc"}
    inside = pairs.get(private, private.lstrip("_"))
    if inside == private:
        return False
    return inside in (public, public.rpartition(".")[2].lower())


def _module_facts() -> Iterator[Fact]:
    for name in _public_modules():
        module = find_module(name)
        text = first_sentence(module.text) if module else None
        if text and name not in PUBLIC_NAMES and not name.startswith("asyncio."):
            yield Fact(name, "module", "", name, text, None, None, _family(name))


def _definition_facts() -> Iterator[Fact]:
    names = public_names()
    for module in (*python_modules().values(), *c_modules().values()):
        for definition in module.definitions.values():
            top, _, method = definition.name.partition(".")
            if method.startswith("_") or (module.name, top) not in names:
                continue
            name = names[module.name, top] + (f".{method}" if method else "")
            text = first_sentence(definition.text)
            # pdb and imghdr look such functions up by name; nobody calls them.
            command = definition.name.rpartition(".")[2].startswith(("do_", "test_"))
            if text and not command and len(name) <= LONGEST_NAME:
                yield _fact(name, method, top in module.classes, definition, text)


def _fact(name: str, method: str, in_class: bool, definition: Definition, text: str) -> Fact:
    owner, _, leaf = name.rpartition(".")
    kind: Kind = "method" if method else "class" if in_class else "function"
    signature_text = definition.arguments
    if signature_text is not None and re.match(r"(?:self|cls)\b", signature_text):
        # A decorator has changed the signature.
        signature_text = None
    arguments = (
        called_with(definition.text) if signature_text is None else _argument_names(signature_text)
    )
    signature = None if signature_text is None else f"({' '.join(signature_text.split())})"
    return Fact(name, kind, owner, leaf, text, arguments, signature, _family(name))


def _argument_names(signature_text: str) -> tuple[str, ...]:
    function = ast.parse(f"def f({signature_text}): pass").body[0]
    assert isinstance(function, ast.FunctionDef), function
    arguments = function.args
    names = [argument.arg for argument in (*arguments.posonlyargs, *arguments.args)]
    names += [f"*{arguments.vararg.arg}"] if arguments.vararg else []
    names += [argument.arg for argument in arguments.kwonlyargs]
    names += [f"**{arguments.kwarg.arg}"] if arguments.kwarg else []
    return tuple(names)


def _family(name: str) -> str:
    top, dot, _ = name.partition(".")
    return stdlib_corpus.family_of(top if dot or top in python_modules() else "builtins")
