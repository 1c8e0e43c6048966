"""Check the links of README.md, CONTRIBUTING.md, CHANGELOG.md and docs/: files, anchors, navigation.

    python tools/check_links.py

Every relative link leads to a file of the tree, and every `#anchor` to a heading of its page. Every path that
begins with a folder of the tree, or names a module of the package as `room/module.py`, exists. Every page of
docs/ is in the navigation of tools/mkdocs.yml. Addresses of other sites are not tried, so that the check is
fast and needs no network. `make docs` builds the pages.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "platform" / "raymill"
NAVIGATION = ROOT / "tools" / "mkdocs.yml"
LINK = re.compile(r"\[(?:[^\]\[]|\[[^\]]*\])*\]\((?P<target>[^)\s]+)\)")
FOLDERS = ("platform", "jobs", "conf", "tests", "k8s", "docs", "bench", "tools")
PATH = re.compile(rf"(?<![\w/.-])(?P<path>(?:{'|'.join(FOLDERS)})/[\w./-]*+)(?![*<{{])")
MODULE = re.compile(r"`(?P<path>[a-z_]+/[a-z_/]+\.py)[:`]")
FENCE = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"``.+?``|`[^`\n]+`")


def pages() -> list[Path]:
    return [
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
        *sorted((ROOT / "docs").rglob("*.md")),
    ]


@cache
def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


@cache
def anchors(page: Path) -> frozenset[str]:
    """Anchors of a page's headings, as GitHub and mkdocs make them."""
    found: dict[str, int] = {}
    names = []
    for heading in re.findall(r"^#{1,6} +(.+?) *#*$", FENCE.sub("", text_of(page)), re.MULTILINE):
        plain = re.sub(r"[*`]|\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        slug = re.sub(r"\s+", "-", re.sub(r"[^\w\s-]", "", plain).strip())
        names.append(slug if slug not in found else f"{slug}-{found[slug]}")
        found[slug] = found.get(slug, 0) + 1
    return frozenset(names)


def line_of(page: Path, position: int) -> str:
    number = text_of(page).count("\n", 0, position) + 1
    return f"{page.relative_to(ROOT)}:{number}"


def bad_links(page: Path) -> Iterator[str]:
    # Code keeps its length, so that positions, and with them line numbers, stay.
    text = FENCE.sub(lambda m: re.sub(r"[^\n]", " ", m[0]), text_of(page))
    text = CODE.sub(lambda m: "`" * len(m[0]), text)
    for match in LINK.finditer(text):
        target = match["target"]
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        linked = (page.parent / name).resolve() if name else page
        where = line_of(page, match.start())
        if not linked.exists():
            yield f"{where}: {target} does not exist"
        elif page.is_relative_to(ROOT / "docs") and not linked.is_relative_to(ROOT / "docs"):
            yield f"{where}: {target} is outside docs/, so the built pages lack it"
        elif anchor and linked.suffix == ".md" and anchor not in anchors(linked):
            yield f"{where}: {target} has no such heading"


def bad_paths(page: Path) -> Iterator[str]:
    # The changelog names files as they were.
    if page.name == "CHANGELOG.md":
        return
    # A link's address is the other check's.
    text = LINK.sub(lambda m: " " * len(m[0]), text_of(page))
    for match in PATH.finditer(text):
        path = match["path"].rstrip(".-/")
        # NAME is a placeholder, and one file is named because it must not exist.
        if "NAME" in path or path == "platform/__init__.py":
            continue
        if not (ROOT / path).exists():
            yield f"{line_of(page, match.start())}: {path} does not exist"
    for match in MODULE.finditer(text):
        path = match["path"]
        if path.startswith("platform/") or (ROOT / path).exists():
            continue
        if not (PACKAGE / path).exists():
            yield f"{line_of(page, match.start())}: {path} is not a module"


def bad_navigation() -> Iterator[str]:
    import yaml

    class Loader(yaml.SafeLoader):
        """Loader that ignores the tags by which mkdocs names Python functions."""

    Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda *_: None)
    listed: set[str] = set()

    def walk(node: object) -> None:
        if isinstance(node, dict):
            for value in node.values():
                walk(value)
        elif isinstance(node, list):
            for value in node:
                walk(value)
        else:
            listed.add(str(node))

    walk(yaml.load(NAVIGATION.read_text(encoding="utf-8"), Loader)["nav"])
    present = {page.relative_to(ROOT / "docs").as_posix() for page in (ROOT / "docs").rglob("*.md")}
    where = NAVIGATION.relative_to(ROOT)
    yield from (f"{where}: docs/{name} does not exist" for name in sorted(listed - present))
    yield from (f"{where}: docs/{name} is missing" for name in sorted(present - listed))


def main() -> int:
    problems = [problem for page in pages() for problem in (*bad_links(page), *bad_paths(page))]
    problems += bad_navigation()
    for problem in dict.fromkeys(problems):
        print(problem)
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
