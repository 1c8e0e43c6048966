"""Embedded corpus: source and documentation of the running Python. About 12 MB, no download.

There are three kinds of entries: module source files without their tests (they contain the
docstrings of Python modules), docstrings of C modules' members, and the language reference of
`help()` (`pydoc_data.topics`). Only built-in modules and the extension modules listed below are
imported: importing arbitrary modules would run arbitrary code.

Held out are families of modules that share text (`FAMILIES`), found by counting the token 13-grams
that each pair of modules has in common. Documentation always trains: docstrings of C modules are
repeated in their Python twins, and the reference quotes the modules that it describes. Over 25
seeds 0.3 to 1.0 % of the held-out token 13-grams were in training too; a plain split by module gave
1.8 %.
"""

from __future__ import annotations

import importlib
import io
import sys
import sysconfig
import tokenize
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import BuiltinFunctionType, ModuleType
from typing import Literal

from raymill.data.store.split import hash_fraction
from raymill.reading import files_below, read_bytes, retried

Kind = Literal["source", "members", "topic"]

# Tests repeat the tested text; site-packages isn't the standard library; pydoc_data's source is the
# topics again, escaped.
LEFT_OUT = (
    "__pycache__ site-packages dist-packages test tests idle_test lib2to3 turtledemo pydoc_data "
    "lib-dynload"
)
# Extension modules that are harmless to import; one that a build lacks is skipped.
EXTENSIONS = (
    "_asyncio _bisect _bz2 _contextvars _csv _datetime _decimal _elementtree _hashlib _heapq "
    "_json _lzma _pickle _queue _random _socket _sqlite3 _ssl _statistics _struct _zoneinfo array "
    "binascii cmath fcntl grp math mmap pyexpat resource select syslog termios unicodedata zlib"
)
# This family is never held out.
TRAINING = "training"
# A family above this share of the corpus always trains, so that the held-out part is a mix.
FAMILY_SHARE = 0.02
FAMILIES = {
    TRAINING: "builtins io pyio pydoc_data pdb bdb cmd decimal pydecimal pylong "
    "datetime pydatetime fractions numbers xxsubtype sitebuiltins operator hashlib hmac sqlite3 "
    "turtle wave aifc sunau chunk sndhdr imghdr colorsys phello__ hello__",
    "classes": "abc py_abc collections collections_abc typing weakref weakrefset functools types "
    "contextlib",
    "compression": "bz2 lzma gzip compression zipfile tarfile zipimport zipapp",
    "concurrency": "asyncio threading threading_local queue concurrent multiprocessing subprocess "
    "sched",
    "installation": "distutils sysconfig shutil site osx_support ctypes ensurepip venv",
    "introspection": "inspect pydoc ast dis opcode",
    "loading": "importlib imp pkgutil runpy modulefinder",
    "network": "http urllib wsgiref cgi cgitb email xmlrpc xml socketserver uu logging html "
    "asyncore asynchat mailcap socket ssl platform quopri",
    "paths": "ntpath posixpath genericpath nturl2path os",
    "pickle": "pickle pickletools copyreg copy",
    "profile": "profile cProfile pstats trace",
    "protocols": "ftplib poplib smtplib imaplib nntplib telnetlib smtpd mailbox netrc",
    "re": "re sre_compile sre_parse sre_constants",
    "testing": "heapq bisect doctest unittest",
}
_FAMILY_OF = {module: family for family, modules in FAMILIES.items() for module in modules.split()}


@dataclass(frozen=True)
class CorpusEntry:
    """One document; entries of a `family` share text and stay in one split.

    `path` is the file of a source entry. `size` in bytes is exact for files, and the text's length
    otherwise.
    """

    name: str
    kind: Kind
    family: str
    size: int
    path: Path | None = None


def entries() -> list[CorpusEntry]:
    """Return every document of the corpus, sorted by name."""
    documents = [*_sources()]
    for module in importable():
        text = _members_text(module)
        if text:
            documents.append(
                CorpusEntry(f"members/{module}.txt", "members", TRAINING, len(text.encode()))
            )
    for topic, text in _topics().items():
        documents.append(CorpusEntry(f"topics/{topic}.txt", "topic", TRAINING, len(text.encode())))
    return sorted(documents, key=lambda entry: entry.name)


def read(entry_name: str) -> str:
    """Return the text of an entry, from its name alone: workers on other nodes run the same
    Python."""
    kind, _, rest = entry_name.partition("/")
    if kind == "members":
        return _members_text(rest.removesuffix(".txt"))
    if kind == "topics":
        return _topics()[rest.removesuffix(".txt")]
    return decode_source(read_bytes(_library() / rest))


def decode_source(content: bytes) -> str:
    """Decode a Python file by its encoding cookie (PEP 263).

    Raises:
        UnicodeDecodeError, SyntaxError: the contents don't match the encoding, or the cookie is
            unknown.
    """
    encoding, _ = tokenize.detect_encoding(io.BytesIO(content).readline)
    return content.decode(encoding)


def held_out_families(corpus: Sequence[CorpusEntry], fraction: float, seed: int) -> frozenset[str]:
    """Return families in a seeded order until they hold `fraction` of the corpus' bytes."""
    sizes: Counter[str] = Counter()
    for entry in corpus:
        sizes[entry.family] += entry.size
    total = sizes.total()
    eligible = [
        family
        for family, size in sizes.items()
        if family != TRAINING and size <= FAMILY_SHARE * total
    ]
    chosen: set[str] = set()
    held = 0
    for family in sorted(eligible, key=lambda name: (hash_fraction(name, seed), name)):
        # The last family may exceed the fraction a little.
        if held >= fraction * total:
            break
        chosen.add(family)
        held += sizes[family]
    return frozenset(chosen)


def family_of(module: str) -> str:
    """Return the family of a top-level module's source, by its name without leading underscores."""
    return _FAMILY_OF.get(module, module)


def _library() -> Path:
    return Path(sysconfig.get_path("stdlib")).resolve()


def _sources() -> Iterator[CorpusEntry]:
    root = _library()
    # Folders that aren't wanted aren't read at all.
    left_out = frozenset(LEFT_OUT.split())
    for path in files_below(root, lambda folder: folder.name not in left_out):
        relative = path.relative_to(root)
        if path.suffix != ".py":
            continue
        if not left_out.isdisjoint(relative.parts) or relative.parts[0].startswith("config-"):
            continue
        module = relative.parts[0].removesuffix(".py").lstrip("_")
        size = retried(path, path.stat).st_size
        if size:
            name = f"source/{relative.as_posix()}"
            yield CorpusEntry(name, "source", family_of(module), size, path)


def importable() -> list[str]:
    """Return built-in and extension modules that may be imported; a build may lack some of them."""
    return sorted({*sys.builtin_module_names, *EXTENSIONS.split()})


def _topics() -> dict[str, str]:
    topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
    return topics


def _members_text(module_name: str) -> str:
    """Return the docstrings of a C module and its members; "" if it can't be imported."""
    try:
        module = importlib.import_module(module_name)
    except ImportError:
        return ""
    # The same text under many names, such as "Return repr(self).", is included once.
    first: dict[str, str] = {}
    for name, signature, text in docstrings(module):
        first.setdefault(text, f"{name}{signature}\n\n{text}\n")
    return "\n\n".join(first.values())


def docstrings(module: ModuleType) -> Iterator[tuple[str, str, str]]:
    """Yield (qualified name, signature or "", docstring), sorted by name at each level.

    Only C definitions count: test runners and debuggers replace hooks such as sys.unraisablehook,
    and the corpus must be the same in every process.
    """
    if module.__doc__:
        yield module.__name__, "", module.__doc__.strip()
    for name, member in sorted(vars(module).items()):
        qualified = f"{module.__name__}.{name}"
        if isinstance(member, type):
            yield from _described(qualified, member)
            for method_name, method in sorted(vars(member).items()):
                if callable(method) or hasattr(method, "__get__"):
                    yield from _described(f"{qualified}.{method_name}", method)
        elif isinstance(member, BuiltinFunctionType) and member.__self__ is module:
            yield from _described(qualified, member)


def _described(name: str, member: object) -> Iterator[tuple[str, str, str]]:
    text = getattr(member, "__doc__", None)
    inherited = getattr(object, name.rpartition(".")[2], None)
    # An inherited docstring says nothing about the member itself.
    if not isinstance(text, str) or text == getattr(inherited, "__doc__", None):
        return
    if text.strip():
        yield name, getattr(member, "__text_signature__", None) or "", text.strip()
