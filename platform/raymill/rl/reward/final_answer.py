"""Extraction of a text's final answer, and comparison of two answers.

Only the text after the reasoning counts. Answers are marked as in datasets of mathematics and in prompts:
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
# Space, emphasis, code and quotes around an answer.
_AROUND = " \t\r\n*`\"'“”‘’"
_FILLED = re.compile(r"^.*[^\s*`\"'“”‘’].*$", re.MULTILINE)
_DISPLAY = re.compile(r"\s*(?:\\\[.*?\\\]|\$\$.*?\$\$)", re.DOTALL)
_SENTENCE_ENDS = re.compile(
    r"[.!](?=\s+\S)|,?\s+(?=(?:because|since|as|so|which|where|for)\b)|\s+(?=\()"
)
_OPENING, _CLOSING = "([{", ")]}"
# Largest distance in characters between boxes that form one list.
_APART = 60
# Only as many of the last markers of a kind are considered.
_LAST = 100
# Limit on the nesting of lists and equations.
_DEPTH = 4
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
class _Candidate:
    """Candidate answer: start of its marker, marked text, and True if it is surely an answer."""

    start: int
    text: str
    sure: bool


def final_answer(text: str, in_reasoning: bool = False) -> str:
    r"""Return the text after the last marker: the content of `\boxed{…}` or of a tag, or the rest of a line.

    If the rest of the line is blank, return the next line that isn't; without a marker, the whole text.
    Adjacent boxes, as in `\boxed{1}, \boxed{2}`, form one list. Reasoning that doesn't end leaves no
    answer: "". `in_reasoning`: the text begins inside reasoning that its prompt opened.
    """
    text = _tag_content(after_reasoning(text, in_reasoning))
    boxes = list(_boxes(text)) if "\\" in text else []
    candidates = [_Candidate(start, content, True) for start, _, content in _joined(text, boxes)]
    candidates += (
        line
        for line in _lines(text)
        if not any(start < line.start < end for start, end, _ in boxes)
    )
    if not candidates:
        return text
    candidates.sort(key=lambda candidate: candidate.start)
    filled = [candidate for candidate in candidates if candidate.text.strip(_AROUND)]
    return ([candidate for candidate in filled if candidate.sure] or filled or candidates)[-1].text


def same_answer(answer: str, expected: str) -> bool:
    """Tell whether two answers are the same number, the same list of answers, or the same text.

    Texts may differ in case, space, emphasis and typesetting. Numbers are compared exactly, and with their
    units where both have one.
    """
    return answer == expected or _same(plain(answer), plain(expected), _DEPTH)


def _same(answer: str, expected: str, depth: int) -> bool:
    if _normal(answer) == _normal(expected):
        return True
    answer, expected = _stripped(answer), _stripped(expected)
    number, other = quantity(answer), quantity(expected)
    if number is not None and other is not None:
        return number.same(other)
    if depth and number is None and other is None and _same_list(answer, expected, depth):
        return True
    return depth > 0 and _same_equation(answer, expected, depth)


def _same_list(answer: str, expected: str, depth: int) -> bool:
    lists = _items(answer), _items(expected)
    if lists[0] is None or lists[1] is None:
        return False
    (brackets, items), (other_brackets, expected_items) = lists[0], lists[1]
    sets = "{}" in (brackets, other_brackets)
    if brackets != other_brackets and not (sets and "" in (brackets, other_brackets)):
        return False
    if len(items) != len(expected_items):
        return False
    if not sets:
        pairs = zip(items, expected_items, strict=True)
        return all(_same(item, other, depth - 1) for item, other in pairs)
    # Items of sets are matched in any order.
    left = list(expected_items)
    for item in items:
        index = next((i for i, other in enumerate(left) if _same(item, other, depth - 1)), None)
        if index is None:
            return False
        del left[index]
    return True


def _same_equation(answer: str, expected: str, depth: int) -> bool:
    """Tell whether two texts such as `x = 5` and `5` have the same value; two variables must be equal."""
    equations = [_equation(text) for text in (answer, expected)]
    if equations[0] is None and equations[1] is None:
        return False
    names = [equation[0] if equation else "" for equation in equations]
    if all(names) and names[0] != names[1]:
        return False
    values = [
        equation[1] if equation else text
        for equation, text in zip(equations, (answer, expected), strict=True)
    ]
    return _same(values[0], values[1], depth - 1)


def _equation(text: str) -> tuple[str, str] | None:
    """Return an equation's variable, "" for arithmetic as in `3 + 4`, and its final value; None for other text.

    An approximate value (`10/3 ≈ 3.33`) is ignored where there is an exact one.
    """
    exact, _, approximate = text.partition("≈")
    if _VARIABLE.fullmatch(exact):
        return exact.strip(), approximate
    parts = _RELATION.split(exact)
    if _VARIABLE.fullmatch(parts[0]) and len(parts) > 1:
        return parts[0].strip(), parts[-1]
    if len(parts) < 2 and not approximate:
        return None
    return ("", parts[-1]) if _ARITHMETIC.fullmatch("".join(parts)) else None


def _items(text: str) -> tuple[str, list[str]] | None:
    """Return a list's brackets, "" if it has none, and its items; None for text that is no list."""
    text = text.replace(r"\{", "{").replace(r"\}", "}").strip()
    if "∪" in text:
        return "∪", text.split("∪")
    brackets = ""
    if text[:1] in _OPENING and text[-1:] in _CLOSING and text and _closes_last(text):
        brackets, text = text[0] + text[-1], text[1:-1]
    split = _SEPARATOR_COMMA.split(_with_inner_hidden(text))
    parts = [part for part in split if part.strip()]
    if len(parts) != len(split) or (len(parts) < 2 and brackets in ("", "()")):
        return None
    return brackets, [
        part.replace("\x1c", ",").replace("\x1d", ";").replace("\x1b", " and ") for part in parts
    ]


def _with_inner_hidden(text: str) -> str:
    """Replace separators of inner lists, and commas inside numbers, with control characters."""
    # Commas between digits separate thousands only if the list's own commas are followed by a space, or if a
    # group such as ",012" can't be an item of the list.
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
    for index, character in enumerate(text):
        depth += (character in _OPENING) - (character in _CLOSING)
        if depth == 0:
            return index == len(text) - 1
    return False


def _stripped(text: str) -> str:
    """Strip emphasis, quotes, a leading "about", and parentheses around a single item."""
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
    """Normalize a text for comparison; a text of nothing but emphasis is kept."""
    text = " ".join(text.casefold().split())
    tight = _COMMA_SPACE.sub(",", _TIGHT.sub(r"\1", _stripped(text)))
    return tight.replace("!=", "≠").replace("<=", "≤").replace(">=", "≥") or text


def _tag_content(text: str) -> str:
    """Return the content of the last tag for answers, or the whole text without one."""
    opened = [*_TAGGED.finditer(text)]
    if opened:
        text = text[opened[-1].end() :]
    ends = _TAG_ENDS.search(text)
    return text[: ends.start()] if ends else text


def _boxes(text: str) -> Iterator[tuple[int, int, str]]:
    """Yield (start, end, content) of each box; one that isn't closed extends to the end of the text."""
    closed = _closings(text)
    for box in [*_BOXED.finditer(text)][-_LAST:]:
        if box["bare"] is not None:
            yield box.start(), box.end(), box["bare"]
            continue
        end = closed.get(box.end() - 1, len(text))
        yield box.start(), end, text[box.end() : end]


def _closings(text: str) -> dict[int, int]:
    """Map the position of each opening brace to that of its closing one."""
    closed, open_braces = {}, []
    for brace in _BRACE.finditer(text):
        if brace[0] == "{":
            open_braces.append(brace.start())
        elif brace[0] == "}" and open_braces:
            closed[open_braces.pop()] = brace.start()
    return closed


def _joined(text: str, boxes: list[tuple[int, int, str]]) -> Iterator[tuple[int, int, str]]:
    """Yield boxes; adjacent ones accumulate into a list, which starts where its last box does."""
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


def _lines(text: str) -> Iterator[_Candidate]:
    """Yield the candidates marked by line markers."""
    for mark in [*_marks(text)][-_LAST:]:
        line, rest = _rest_of_line(text, mark.end(), bool(mark["sentence"]))
        content, sure = _first_sentence(line), True
        if mark["hashes"]:
            # Headings of Markdown look like GSM8K's marker, which is only certain before a number.
            content = line
            sure = as_number(line) is not None or not (rest.strip() or as_quantity(line) is None)
        elif mark["sentence"]:
            # A sentence may mention an answer without stating it; a number or mathematics is certain.
            sure = as_quantity(content) is not None or content.lstrip()[:1] in ("$", "\\")
        yield _Candidate(mark.start(), content, sure)


def _marks(text: str) -> Iterator[re.Match[str]]:
    """Yield line markers; only lines that may hold one are searched, since few lines of a long text do."""
    start = 0
    for line in text.split("\n"):
        if "####" in line or "answer" in line.lower():
            yield from _LINE.finditer(text, start, start + len(line))
        start += len(line) + 1


def _rest_of_line(text: str, start: int, sentence: bool) -> tuple[str, str]:
    """Return the rest of the line, the next non-blank line, or a whole formula; and the text after it."""
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
    """Return the line's first sentence if that is a number or mathematics, else the whole line."""
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
