"""Where in a text its final answer stands, and when two of them are the same.

What follows the reasoning counts. Markers in it are those that datasets of mathematics and prompts use:
`#### 42` (GSM8K, Cobbe et al. 2021), `\\boxed{42}` (MATH, Hendrycks et al. 2021), `Answer: 42`, "the answer
is 42" and `<answer>42</answer>`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from raymill.evaluate.latex import THOUSANDS, plain
from raymill.evaluate.quantities import as_number, as_quantity, quantity
from raymill.evaluate.reasoning import after_reasoning

__all__ = ["as_number", "final_answer", "same_answer"]

_TAGGED = re.compile(
    r"<(answer|final_answer|response|solution)>|<\|(?:begin_of_solution|start_response)\|>",
    re.IGNORECASE,
)
_TAG_ENDS = re.compile(
    r"</(?:answer|final_answer|response|solution)>|<\|(?:end_of_solution|end_response)\|>",
    re.IGNORECASE,
)
_BOXED = re.compile(r"\\(?:boxed|fbox)\s*(?:\{|(?P<bare>[0-9A-Za-z]+))")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_BETWEEN_BOXES = re.compile(
    r"(?:[\s,;$&.()\[\]\\]|\\?quad|\\?text\{\s*(?:and|or)\s*\}|and\b|or\b){0,20}"
)
_LINE = re.compile(
    r"(?P<heading>^[ \t#*_>]*(?:the[ ])?(?:final[ ])?answer[ \t#*_]*$)"
    r"|(?P<hashes>(?<!\#)\#{4}(?!\#))"
    r"|(?P<colon>\banswers?\b\s*[*_`]{0,3}\s*(?:[:：]|=(?!=))[*_`]{0,3})"
    r"|(?P<sentence>\banswers?\b(?:[^\n.:;=]{0,60}?\b(?:is|are|be|equals)\b\s*:?|\s+(?=\$|\\[(\[])))",
    re.IGNORECASE | re.MULTILINE,
)
_AROUND = " \t\r\n*`\"'“”‘’"  # emphasis, code, quotes
_FILLED = re.compile(r"^.*[^\s*`\"'“”‘’].*$", re.MULTILINE)
_DISPLAY = re.compile(r"\s*(?:\\\[.*?\\\]|\$\$.*?\$\$)", re.DOTALL)
_SENTENCE_ENDS = re.compile(
    r"[.!](?=\s+\S)|,?\s+(?=(?:because|since|as|so|which|where|for)\b)|\s+(?=\()"
)
_OPENING, _CLOSING = "([{", ")]}"
_APART = 60  # characters between boxes that follow each other
_LAST = 100  # marks of a kind that are looked at
_DEEP = 4  # lists in lists
_VARIABLE = re.compile(
    r"\s*(?:[A-Za-z]{1,2}(?:_\{?\w+\}?)?'?|\\[a-z]+|[A-Za-z]\([A-Za-z0-9]\)|\(\s*[A-Za-z](?:\s*,\s*[A-Za-z])+\s*\))\s*"
)
_RELATION = re.compile(r"(?<![<>!≠≤≥:=])[=∈](?!=)")
_ARITHMETIC = re.compile(r"[0-9\s.,+\-*/×·÷()^{}$€£%]*")
_ABOUT = re.compile(r"\s*(?:[=≈]|approximately\b|about\b|roughly\b)\s*", re.IGNORECASE)
_TIGHT = re.compile(r"\s*([()\[\]{}<>=+*/^_|;:≤≥≠≈∈∪∩×·±∓→%°])\s*")
_COMMA_SPACE = re.compile(r",\s+(?!(?<=[0-9],\s)[0-9]{3}(?![0-9]))")
_SEPARATOR_COMMA = re.compile(r"\s*[,;]\s*(?:and\s+)?|\s+and\s+")


@dataclass(frozen=True)
class _Found:
    """A candidate: where its marker begins, what it marks, and if that is surely an answer."""

    start: int
    text: str
    sure: bool


def final_answer(text: str, in_reasoning: bool = False) -> str:
    r"""Return what the last marker marks: the content of `\boxed{…}` or of a tag, or the rest of a line.

    If nothing is left of that line, the next that isn't blank; without a marker, the whole text. Boxes that
    follow each other, as in `\boxed{1}, \boxed{2}`, are one list. Of reasoning that doesn't end nothing
    is an answer: "". `in_reasoning`: the text begins within reasoning that its prompt opened.
    """
    text = _tagged(after_reasoning(text, in_reasoning))
    boxes = list(_boxes(text)) if "\\" in text else []
    found = [_Found(start, content, True) for start, _, content in _joined(text, boxes)]
    found += (
        line
        for line in _lines(text)
        if not any(start < line.start < end for start, end, _ in boxes)
    )
    if not found:
        return text
    found.sort(key=lambda one: one.start)
    written = [one for one in found if one.text.strip(_AROUND)]
    return ([one for one in written if one.sure] or written or found)[-1].text


def same_answer(given: str, expected: str) -> bool:
    """Tell whether two answers are the same number, the same list of answers, or the same text but for case,
    space, emphasis and typesetting.

    Numbers are compared exactly, and with their units where both have one.
    """
    return given == expected or _same(plain(given), plain(expected), _DEEP)


def _same(given: str, expected: str, deep: int) -> bool:
    if _normal(given) == _normal(expected):
        return True
    given, expected = _told(given), _told(expected)
    number, other = quantity(given), quantity(expected)
    if number is not None and other is not None:
        return number.same(other)
    if deep and number is None and other is None and _same_list(given, expected, deep):
        return True
    return deep > 0 and _same_equation(given, expected, deep)


def _same_list(given: str, expected: str, deep: int) -> bool:
    lists = _items(given), _items(expected)
    if lists[0] is None or lists[1] is None:
        return False
    (around, ours), (around_other, theirs) = lists[0], lists[1]
    sets = "{}" in (around, around_other)
    if around != around_other and not (sets and "" in (around, around_other)):
        return False
    if len(ours) != len(theirs):
        return False
    if not sets:
        return all(_same(one, other, deep - 1) for one, other in zip(ours, theirs, strict=True))
    left = list(theirs)
    for one in ours:
        place = next((i for i, other in enumerate(left) if _same(one, other, deep - 1)), None)
        if place is None:
            return False
        del left[place]
    return True


def _same_equation(given: str, expected: str, deep: int) -> bool:
    """`x = 5` and `5`; two variables must be one."""
    sides = [_equation(text) for text in (given, expected)]
    if sides[0] is None and sides[1] is None:
        return False
    names = [side[0] if side else "" for side in sides]
    if all(names) and names[0] != names[1]:
        return False
    values = [
        side[1] if side else text for side, text in zip(sides, (given, expected), strict=True)
    ]
    return _same(values[0], values[1], deep - 1)


def _equation(text: str) -> tuple[str, str] | None:
    """The variable, "" for arithmetic such as `3 + 4`, and what it is in the end; None of any other text.

    What it is about (`10/3 ≈ 3.33`) doesn't count beside what it is.
    """
    exact, _, about = text.partition("≈")
    if _VARIABLE.fullmatch(exact):
        return exact.strip(), about
    parts = _RELATION.split(exact)
    if _VARIABLE.fullmatch(parts[0]) and len(parts) > 1:
        return parts[0].strip(), parts[-1]
    if len(parts) < 2 and not about:
        return None
    return ("", parts[-1]) if _ARITHMETIC.fullmatch("".join(parts)) else None


def _items(text: str) -> tuple[str, list[str]] | None:
    """Return what stands around a list, "" where nothing does, and its items; None of text that is no list."""
    text = text.replace(r"\{", "{").replace(r"\}", "}").strip()
    if "∪" in text:
        return "∪", text.split("∪")
    around = ""
    if text[:1] in _OPENING and text[-1:] in _CLOSING and text and _closes_last(text):
        around, text = text[0] + text[-1], text[1:-1]
    spaced = _SEPARATOR_COMMA.split(_hidden(text))
    parts = [part for part in spaced if part.strip()]
    if len(parts) != len(spaced) or (len(parts) < 2 and around in ("", "()")):
        return None
    return around, [
        part.replace("\x1c", ",").replace("\x1d", ";").replace("\x1b", " and ") for part in parts
    ]


def _hidden(text: str) -> str:
    """The text with separators of inner lists, and commas within numbers, made something else."""
    spaced = re.search(r",\s", text) is not None
    grouped = spaced or re.search(r"[0-9],0[0-9]{2}(?![0-9])", text) is not None
    if grouped:
        text = THOUSANDS.sub("\x1c", text)
    depth, out = 0, []
    for character in text:
        depth += (character in _OPENING) - (character in _CLOSING)
        if depth > 0 and character in ",;":
            character = {",": "\x1c", ";": "\x1d"}[character]
        out.append(character)
    return "".join(out)


def _closes_last(text: str) -> bool:
    """Tell whether the bracket that begins the text is closed by the one that ends it."""
    depth = 0
    for place, character in enumerate(text):
        depth += (character in _OPENING) - (character in _CLOSING)
        if depth == 0:
            return place == len(text) - 1
    return False


def _told(text: str) -> str:
    """An answer without what stands around it: emphasis, quotes, "about", brackets around one thing."""
    text = text.strip(_AROUND).rstrip(".,;:").strip(_AROUND)
    if about := _ABOUT.match(text):
        text = text[about.end() :]
    while (
        text[:1] == "("
        and text[-1:] == ")"
        and "," not in text
        and ";" not in text
        and _closes_last(text)
    ):
        text = text[1:-1].strip(_AROUND)
    return text


def _normal(text: str) -> str:
    """The text for comparison; what is nothing but emphasis stays as it is."""
    text = " ".join(text.casefold().split())
    tight = _COMMA_SPACE.sub(",", _TIGHT.sub(r"\1", _told(text)))
    return tight.replace("!=", "≠").replace("<=", "≤").replace(">=", "≥") or text


def _tagged(text: str) -> str:
    """Return what the last tag for answers holds, or else the whole text."""
    opened = [*_TAGGED.finditer(text)]
    if opened:
        text = text[opened[-1].end() :]
    ends = _TAG_ENDS.search(text)
    return text[: ends.start()] if ends else text


def _boxes(text: str) -> Iterator[tuple[int, int, str]]:
    """(start, end, content) of each box; one that isn't closed goes on to the end."""
    closed = _closings(text)
    for box in [*_BOXED.finditer(text)][-_LAST:]:
        if box["bare"] is not None:
            yield box.start(), box.end(), box["bare"]
            continue
        end = closed.get(box.end() - 1, len(text))
        yield box.start(), end, text[box.end() : end]


def _closings(text: str) -> dict[int, int]:
    """Return where each brace that opens is closed, if it is."""
    closed, open_braces = {}, []
    for found in _BRACE.finditer(text):
        if found[0] == "{":
            open_braces.append(found.start())
        elif found[0] == "}" and open_braces:
            closed[open_braces.pop()] = found.start()
    return closed


def _joined(text: str, boxes: list[tuple[int, int, str]]) -> Iterator[tuple[int, int, str]]:
    """Boxes, of which those that follow each other make one list, where its last begins."""
    before: tuple[int, int, str] | None = None
    for start, end, content in boxes:
        follows = (
            before is not None
            and 0 < start - before[1] < _APART
            and _BETWEEN_BOXES.fullmatch(text, before[1] + 1, start)
        )
        if before is not None and follows and content.strip() and before[2].strip():
            content = f"{before[2]}, {content}"
        before = (start, end, content)
        yield before


def _lines(text: str) -> Iterator[_Found]:
    """Yield what markers of lines mark.

    A heading of Markdown looks like GSM8K's marker: surely the latter stands before a number. A sentence may
    speak of an answer without giving it: surely it gives numbers and mathematics.
    """
    for mark in [*_marks(text)][-_LAST:]:
        line, rest = _rest_of_line(text, mark.end(), bool(mark["sentence"]))
        content, sure = _first_sentence(line), True
        if mark["hashes"]:
            content = line
            sure = as_number(line) is not None or not (rest.strip() or as_quantity(line) is None)
        elif mark["sentence"]:
            sure = as_quantity(content) is not None or content.lstrip()[:1] in ("$", "\\")
        yield _Found(mark.start(), content, sure)


def _marks(text: str) -> Iterator[re.Match[str]]:
    """Searched for in lines that can hold one, since most of a long text doesn't."""
    start = 0
    for line in text.split("\n"):
        if "####" in line or "answer" in line.lower():
            yield from _LINE.finditer(text, start, start + len(line))
        start += len(line) + 1


def _rest_of_line(text: str, start: int, sentence: bool) -> tuple[str, str]:
    """The rest of the line, or the next that isn't blank, or the whole of a formula; and what comes after."""
    end = text.find("\n", start)
    if (
        end >= 0
        and not text[start:end].strip(_AROUND)
        and not (sentence and text[start - 1] in ".")
    ):
        following = _FILLED.search(text, end)
        start = following.start() if following else end
        end = text.find("\n", start + 1)
    end = len(text) if end < 0 else end
    if display := _DISPLAY.match(text, start):
        return display[0], text[display.end() :]
    return text[start:end], text[end:]


def _first_sentence(line: str) -> str:
    """The line up to where a sentence ends, if that is a number or mathematics; the whole line otherwise."""
    for ends in _SENTENCE_ENDS.finditer(line[:400]):
        before = line[: ends.start()]
        if as_quantity(before.strip(_AROUND)) is not None or _is_mathematics(before.strip(_AROUND)):
            return before
    return line


def _is_mathematics(text: str) -> bool:
    return len(text) > 2 and (
        (text[0] == text[-1] == "$" and "$" not in text[1:-1])
        or (text.startswith(r"\(") and text.endswith(r"\)"))
    )
