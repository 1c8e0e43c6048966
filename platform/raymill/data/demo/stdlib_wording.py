"""First sentence of a docstring, without markup and without parts for readers of the source."""

from __future__ import annotations

import re

# Characters of a first sentence.
SHORTEST, LONGEST = 13, 200
MOST_WORDS = 36
# "S.find(sub[, start]) -> int", "r = reader(lines)", "dump(x) -- write x", "dump(x): write x"
_CALL = re.compile(
    r"^(?:\w+ = )?[\w.]+ ?\((?P<given>[^()]*(?:\(\)[^()]*)*)\)\.?\s*(?:--?>\s*(?P<result>.*?))?"
    r"(?:\s*(?:--|:\s)\s*(?P<rest>.*))?$"
)
_MARKUP = (
    # :func:`x`
    (re.compile(r":[\w:+-]+:`~?!?([^`<]+?)(?:\s*<[^`]*>)?`"), r"\1"),
    (re.compile(r"`{1,2}([^`]+)`{1,2}"), r"\1"),
    (re.compile(r"`([^`']+)'"), r"\1"),
    (re.compile(r"(?<![\w*])\*{1,2}(\w[^*]*\w|\w)\*{1,2}(?![\w*])"), r"\1"),
    (re.compile(r"\s+--\s+"), " - "),
    # "heapq.py - ..."
    (re.compile(r"^\w+(?:\.py)? ?[-:] +"), ""),
)
_USELESS = re.compile(
    r">>>|::|XXX|TODO|FIXME|[Dd]eprecated|[Ii]nternal|\b[Ss]ee |as above|\bself\b|\|\w|@|\\|http"
    r"|following|follows|below|above|idlelib|IDLE|:>"
    r"|^(?:Overrid|Like\b|Same\b(?! as .* [-+*/<>=@&|^]| as not )|Ditto|Alias|Helper|Copyright|This "
    r"|These |Note|Equivalent|Similar|Identical|Don't|Handler for|Not |Closely"
    r"|Should|Must|Demo|Included|Authobject|WARNING|I[, ])"
    r"|^\w+ ?=|^[\w.]+\(|\bdemonstration\b|\bsubclass(?:es)? (?:should|must|may)\b"
)
# A full stop ends the sentence unless it belongs to one of these.
_ABBREVIATION = re.compile(
    r"(?:\be\.g|\bi\.e|\betc|\bvs|\bcf|\bno|\bresp|\bincl|\bapprox)\.$", re.I
)


def first_sentence(text: str) -> str | None:
    """Return one line with a full stop; None when it is useless without the source."""
    paragraphs = [" ".join(part.split()) for part in re.split(r"\n\s*\n", text.strip())]
    lead = paragraphs[0]
    call = _CALL.match(lead)
    if call:
        lead = call["rest"] or next(iter(paragraphs[1:]), "")
        if not lead and call["result"] and " " in call["result"]:
            lead = f"Return {call['result']}"
    for pattern, replacement in _MARKUP:
        lead = pattern.sub(replacement, lead)
    sentence = _until_full_stop(lead).strip(" .,;")
    if not SHORTEST <= len(sentence) <= LONGEST or len(sentence.split()) > MOST_WORDS:
        return None
    if _USELESS.search(sentence) or sentence[-1] in ":-" or not sentence.isascii():
        return None
    if not sentence[0].isalpha() or sentence.count('"') % 2 or "`" in sentence:
        return None
    if any(sentence.count(left) != sentence.count(right) for left, right in ("()", "[]", "{}")):
        return None
    return sentence[0].upper() + sentence[1:] + "."


def called_with(text: str) -> tuple[str, ...] | None:
    """Return the argument names in a docstring's first line: "find(sub[, start])" gives sub and
    start."""
    call = _CALL.match(" ".join(re.split(r"\n\s*\n", text.strip())[0].split()))
    if not call:
        return None
    names = re.split(r"[\s,]+", re.sub(r"[\[\]/]|=[^,\]]*", " ", call["given"]).strip(" ,"))
    known = [name for name in names if name not in ("", "*")]
    return tuple(known) if all(map(_is_argument, known)) else None


def _is_argument(name: str) -> bool:
    return name.lstrip("*").isidentifier()


def _until_full_stop(text: str) -> str:
    for stop in re.finditer(r"[.?!](?=\s|$)", text):
        if not _ABBREVIATION.search(text[: stop.end()]):
            return text[: stop.start()]
    return text
