"""Text of an article in wikitext, without templates, tables, references and media.

Follows the preparation of `wikimedia/wikipedia` on the Hugging Face Hub (its `wikipedia.py`): mwparserfromhell,
links to media and categories left out. Here one walk over the parsed nodes collects the text, since removing
nodes takes quadratic time.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import mwparserfromhell
from mwparserfromhell import nodes
from mwparserfromhell.wikicode import Wikicode

# Tags whose contents aren't running text.
_LEFT_OUT = frozenset(
    ("ref", "references", "table", "gallery", "timeline", "score", "math", "imagemap", "templatestyles",
     "graph", "mapframe", "maplink", "hiero", "chem", "ce", "style", "script"),
)  # fmt: skip
_MAGIC_WORDS = re.compile(r"__[A-Z]+__")
_BLANK_LINES = re.compile(r"\n\s*\n\s*")
# A heading is marked until it is known whether text follows.
_HEADING = re.compile("^\x00(\\d)(.*)$")


def plain_text(wikitext: str, namespaces: Sequence[str] = ()) -> str:
    """Return the text of an article; links into `namespaces` (`File`, `Category`) are left out."""
    parsed = mwparserfromhell.parse(wikitext.replace("\0", ""), skip_style_tags=True)
    prefixes = frozenset(name.casefold() for name in namespaces)
    text = "".join(_texts(parsed, prefixes))
    # Emphasis isn't parsed, which saves half of the time.
    text = _MAGIC_WORDS.sub("", text.replace("'''", "").replace("''", ""))
    lines = [line.rstrip() for line in text.split("\n")]
    return _BLANK_LINES.sub("\n\n", "\n".join(_without_empty_sections(lines))).strip()


def _texts(code: Wikicode, prefixes: frozenset[str]) -> Iterator[str]:
    for node in code.nodes:
        if isinstance(node, nodes.Text):
            yield node.value
        elif isinstance(node, nodes.Wikilink):
            if not _leads_into(str(node.title), prefixes):
                yield from _texts(node.title if node.text is None else node.text, prefixes)
        elif isinstance(node, nodes.ExternalLink):
            if node.title is not None:
                yield from _texts(node.title, prefixes)
        elif isinstance(node, nodes.Heading):
            title = "".join(_texts(node.title, prefixes)).strip().replace("\n", " ")
            yield f"\x00{node.level}{title}"
        elif isinstance(node, nodes.HTMLEntity):
            yield node.normalize()
        elif isinstance(node, nodes.Tag):
            name = str(node.tag).strip().lower()
            # The mark of a list is a tag without contents.
            contents = None if name in _LEFT_OUT else node.contents
            yield from ["\n"] if name == "br" else _texts(contents, prefixes) if contents else ()


def _leads_into(title: str, prefixes: frozenset[str]) -> bool:
    prefix, colon, _ = title.strip().partition(":")
    return bool(colon) and prefix.strip().replace("_", " ").casefold() in prefixes


def _without_empty_sections(lines: Sequence[str]) -> list[str]:
    """Unmark headings, and drop those that no text follows, as that of the references."""
    kept: list[str] = []
    # From the end: the level of the heading that was met last, while no text follows it.
    below: int | None = 0
    for line in reversed(lines):
        found = _HEADING.match(line)
        if found is None:
            kept.append(line)
            below = None if line.strip() else below
        elif below is None or int(found[1]) < below:
            kept.extend(("", found[2], ""))
            below = int(found[1])
    return kept[::-1]
