"""Definitions of the standard library, read from its source and from C modules' docstrings.

Python modules are parsed, never imported. `stdlib_facts` uses the documented names,
`stdlib_unknown` every name that exists, documented or not.
"""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from raymill.data.demo import stdlib_corpus

# Large, and of no use to anybody.
LEFT_OUT = "idlelib distutils encodings __phello__ __hello__ antigravity this"
# These modules may create names at run time: deprecation shims, enumerations turned into constants.
# Each word of such a module's source counts as a name of it.
_OPEN = re.compile(
    r"^def __getattr__|globals\(\)(\.update|\[)|_convert_\(|sys\.modules\[__name__\]|^ *exec\(",
    re.M,
)
_Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Definition:
    """Function, class, method ("Class.name") or property.

    `arguments`: the signature's text without parentheses and without `self`; None if unknown.
    """

    name: str
    text: str
    arguments: str | None


@dataclass
class ClassNames:
    """Names of a class itself, and the sources of others: base classes and metaclass, as
    written."""

    names: set[str] = field(default_factory=set)
    bases: list[str] = field(default_factory=list)


@dataclass
class Module:
    """One module.

    `imported`: local name → (module, name in it), or (module, "") for a module. `exported`:
    `__all__` where it is a literal.
    """

    name: str
    text: str = ""
    definitions: dict[str, Definition] = field(default_factory=dict)
    names: set[str] = field(default_factory=set)
    classes: dict[str, ClassNames] = field(default_factory=dict)
    imported: dict[str, tuple[str, str]] = field(default_factory=dict)
    stars: list[str] = field(default_factory=list)
    exported: frozenset[str] | None = None


@lru_cache(maxsize=1)
def corpus() -> tuple[stdlib_corpus.CorpusEntry, ...]:
    """Return the pretraining corpus; listing it reads every C module's docstrings."""
    return tuple(stdlib_corpus.entries())


@lru_cache(maxsize=1)
def python_modules() -> dict[str, Module]:
    """Return every Python module of the corpus, including private ones, by dotted name."""
    left_out = frozenset(LEFT_OUT.split())
    modules = {}
    for entry in corpus():
        parts = entry.name.removesuffix(".py").split("/")[1:]
        if entry.kind != "source" or parts[0] in left_out:
            continue
        package = parts[-1] == "__init__"
        name = ".".join(parts[:-1] if package else parts)
        modules[name] = read_module(name, stdlib_corpus.read(entry.name), package)
    for name in modules:
        parent, _, child = name.rpartition(".")
        if parent in modules:
            modules[parent].names.add(child)
    return modules


@lru_cache(maxsize=1)
def c_modules() -> dict[str, Module]:
    """Return every C module that the corpus may import and that this build has."""
    modules = {}
    for name in stdlib_corpus.importable():
        try:
            imported = importlib.import_module(name)
        except ImportError:
            continue
        modules[name] = module = Module(name, (imported.__doc__ or "").strip())
        module.names.update(dir(imported))
        for local, member in vars(imported).items():
            if isinstance(member, type):
                # A class also answers to its metaclass' names.
                module.classes[local] = ClassNames({*dir(member), *dir(type(member))})
        for full, signature, text in stdlib_corpus.docstrings(imported):
            local = full.removeprefix(f"{imported.__name__}.")
            top = getattr(imported, local.partition(".")[0], None)
            # IOError, for example, is another name of OSError.
            alias = isinstance(top, type) and top.__name__ != local.partition(".")[0]
            # Test runners and debuggers replace sys.unraisablehook and its like.
            hook = name == "sys" and local.endswith("hook")
            if full != imported.__name__ and not alias and not hook:
                module.definitions[local] = Definition(local, text, _c_arguments(signature))
    return modules


def read_module(name: str, source: str, package: bool = False) -> Module:
    """Parse one module."""
    tree = ast.parse(source)
    module = Module(name, ast.get_docstring(tree) or "")
    # Too many names only make fewer made-up ones; a missing name could make a real one look made
    # up.
    if _OPEN.search(source):
        module.names.update(re.findall(r"[A-Za-z]\w+", source))
    instances: dict[str, str] = {}
    for node in _statements(tree.body):
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                module.names.add(node.name)
                _define(module, node.name, node, _arguments(node, drop_first=False))
            case ast.ClassDef():
                module.names.add(node.name)
                _read_class(module, node)
            case ast.ImportFrom():
                _read_import(module, node, package)
            case ast.Import():
                for alias in node.names:
                    local = alias.asname or alias.name.partition(".")[0]
                    module.names.add(local)
                    module.imported[local] = (alias.name if alias.asname else local, "")
            case _:
                module.names.update(_assigned(node))
        if isinstance(node, ast.Assign) and _is_all(node):
            module.exported = _strings(node.value)
        elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Call | ast.Attribute):
            _read_alias(module, node, instances)
    # An `__all__` that is extended later isn't known completely.
    if re.search(r"__all__(?: \+=|\.extend|\.append)", source):
        module.exported = None
    return module


def _statements(body: Sequence[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield the statements of a block, including those inside if, try, with and loops."""
    for node in body:
        yield node
        if isinstance(node, _Function | ast.ClassDef):
            continue
        for block in ("body", "handlers", "orelse", "finalbody"):
            for child in getattr(node, block, []):
                yield from _statements(child.body if hasattr(child, "type") else [child])


def _define(
    module: Module, name: str, node: _Function | ast.ClassDef, arguments: str | None
) -> None:
    text = ast.get_docstring(node) or ""
    if text or name not in module.definitions:
        known = module.definitions.get(name)
        if known is None or not known.text:
            module.definitions[name] = Definition(name, text, arguments)


def _read_class(module: Module, node: ast.ClassDef) -> None:
    class_names = module.classes.setdefault(node.name, ClassNames())
    class_names.bases += [ast.unparse(base) for base in node.bases]
    class_names.bases += [
        ast.unparse(keyword.value) for keyword in node.keywords if keyword.arg == "metaclass"
    ]
    constructor = None
    for child in _statements(node.body):
        match child:
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                class_names.names.add(child.name)
                class_names.names.update(_set_on_self(child))
                if child.name == "__init__":
                    constructor = _arguments(child, drop_first=True)
                elif not child.name.startswith("_"):
                    _read_method(module, node, child)
            case ast.ClassDef():
                class_names.names.add(child.name)
            case _:
                class_names.names.update(_assigned(child))
    _define(module, node.name, node, constructor)


def _read_method(module: Module, owner: ast.ClassDef, node: _Function) -> None:
    decorators = {ast.unparse(decorator).rpartition(".")[2] for decorator in node.decorator_list}
    if decorators & {"setter", "deleter", "overload"}:
        return
    plain = not decorators or decorators <= {"classmethod", "staticmethod", "abstractmethod"}
    arguments = _arguments(node, drop_first="staticmethod" not in decorators) if plain else None
    _define(module, f"{owner.name}.{node.name}", node, arguments)


def _read_alias(module: Module, node: ast.Assign, instances: dict[str, str]) -> None:
    """Record functions that are methods of a hidden instance: `randint = _inst.randint`."""
    target, value = node.targets[0], node.value
    if not isinstance(target, ast.Name):
        return
    if isinstance(value, ast.Call):
        instances[target.id] = ast.unparse(value.func)
    elif isinstance(value, ast.Attribute):
        method = f"{instances.get(ast.unparse(value.value))}.{value.attr}"
        known = module.definitions.get(method)
        if known:
            module.definitions[target.id] = Definition(target.id, known.text, known.arguments)


def _read_import(module: Module, node: ast.ImportFrom, package: bool) -> None:
    source = node.module or ""
    if node.level:
        parts = module.name.split(".")
        base = parts[: len(parts) - node.level + package]
        source = ".".join([*base, source] if source else base)
    for alias in node.names:
        if alias.name == "*":
            module.stars.append(source)
        else:
            module.names.add(alias.asname or alias.name)
            module.imported[alias.asname or alias.name] = (source, alias.name)


def _assigned(node: ast.stmt) -> Iterator[str]:
    for child in ast.walk(node):
        if isinstance(child, ast.Name) and isinstance(child.ctx, ast.Store):
            yield child.id


def _set_on_self(node: _Function) -> Iterator[str]:
    for child in ast.walk(node):
        if isinstance(child, ast.Attribute) and isinstance(child.ctx, ast.Store):
            yield child.attr


def _is_all(node: ast.Assign) -> bool:
    return any(isinstance(target, ast.Name) and target.id == "__all__" for target in node.targets)


def _strings(node: ast.expr) -> frozenset[str] | None:
    """Return the strings of a literal list; None for a computed one."""
    try:
        return frozenset(ast.literal_eval(node))
    except (ValueError, TypeError):
        return None


def _arguments(node: _Function, drop_first: bool) -> str | None:
    arguments = node.args
    every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    for argument in (*every, arguments.vararg, arguments.kwarg):
        if argument:
            # Annotations would make signatures too long for an answer.
            argument.annotation = None
    if drop_first:
        first = arguments.posonlyargs or arguments.args
        if not first:
            return None
        # `self` and `cls` aren't part of a call.
        first.pop(0)
    return ast.unparse(arguments).removeprefix("/, ")


def _c_arguments(signature: str) -> str | None:
    """Return the arguments of `__text_signature__`: "($self, key, /)" gives "key, /"."""
    if not signature:
        return None
    arguments = re.sub(r"^\$\w+(, /)?(, )?", "", signature.strip()[1:-1])
    try:
        ast.parse(f"def f({arguments}): pass")
    except SyntaxError:
        return None
    return arguments
