"""Normalization of LaTeX: equivalent spellings become one, and commands that only typeset are removed.

Parentheses lose their sizes and fractions get their braces. Text without LaTeX keeps its words.
"""

from __future__ import annotations

import re

# A comma between digits that may separate thousands, as written without LaTeX.
THOUSANDS = re.compile(r"(?<=[0-9]),(?=[0-9]{3}(?![0-9]))")
# Replaces a comma between digits that can only separate thousands, as in `1{,}234`.
SEPARATOR = "\x1f"
# Longer texts aren't normalized.
_CHARACTERS = 4000

_TRANSLATED = str.maketrans(
    {
        "−": "-", "–": "-", "－": "-", "﹣": "-", "\N{NO-BREAK SPACE}": " ", "\N{THIN SPACE}": " ",
        "\N{NARROW NO-BREAK SPACE}": " ", "％": "%", "º": "°", "≦": "≤", "≧": "≥", "⋅": "·", "∙": "·",
        "½": " 1/2", "⅓": " 1/3", "⅔": " 2/3", "¼": " 1/4", "¾": " 3/4", "⅕": " 1/5", "⅖": " 2/5",
        "⅗": " 3/5", "⅘": " 4/5", "⅙": " 1/6", "⅚": " 5/6", "⅛": " 1/8", "⅜": " 3/8", "⅝": " 5/8", "⅞": " 7/8",
    }
)  # fmt: skip
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺", "0123456789-+")
_SUPERSCRIPT = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺]+")
# Commands, each followed by its replacement.
_SIGNS = r"""
times × cdot · div ÷ pm ± mp ∓ circ ° degree ° textdegree ° infty ∞ pi π le ≤ leq ≤ leqslant ≤ ge ≥ geq ≥
geqslant ≥ lt < gt > ne ≠ neq ≠ approx ≈ in ∈ cup ∪ cap ∩ emptyset ∅ varnothing ∅ setminus ∖ to →
rightarrow → ldots … dots … cdots … euro € pounds £ textdollar $ mid | vert | lbrace \{ rbrace \} lbrack [
rbrack ] dfrac \frac tfrac \frac cfrac \frac % % # # & & _ _
"""
_SPACES = ", ; : quad qquad thinspace enspace space"
_TYPESETTING = """
! ( ) [ ] left right middle big Big bigl bigr Bigl Bigr displaystyle textstyle limits bf rm it tt large Large
"""
_COMMANDS = {
    **dict(zip(_SIGNS.split()[::2], _SIGNS.split()[1::2], strict=True)),
    **dict.fromkeys([" ", *_SPACES.split()], " "),
    **dict.fromkeys(_TYPESETTING.split(), ""),
}
_COMMAND = re.compile(r"\\([A-Za-z]+|[^A-Za-z])")
_ESCAPED_TWICE = re.compile(r"\\\\(?=[A-Za-z])")
_LATEX_THOUSANDS = re.compile(r"(?<=[0-9])\s*(?:\{\s*,\s*\}|,\s*\\!)\s*(?:\\!\s*)?(?=[0-9]{3})")
_WRAPPED = re.compile(
    r"\\(?:text(?:bf|it|rm|sf|tt|normal|up|sl|md)?|math(?:rm|bf|it|sf|tt|bb|cal|normal)|mbox|hbox|fbox|boxed|emph|"
    r"operatorname\*?|bm|boldsymbol|underline|overbrace|unit)\s*\{([^{}]*(?:\{[^{}]*\}[^{}]*)*)\}"
)
_MATHEMATICS = re.compile(r"\$\$(.+?)\$\$|\$([^$\n]+)\$", re.DOTALL)
# A non-breaking space.
_TILDE = re.compile(r"(?<=[0-9{}])~(?=[0-9A-Za-z\\])")
_DOLLAR = "\x1e"
_BOLD = re.compile(r"(?<![\w*])\*\*(?=[^\s*])(.+?)(?<=[^\s*])\*\*(?![\w*])")
_BETWEEN = re.compile(r"(\}|\\frac|\\sqrt)\s+\{")
_BARE_PART = re.compile(r"\\(frac|sqrt)\s*([0-9A-Za-z])")
_BARE_BELOW = re.compile(r"(\\frac\s*\{[^{}]*\})\s*([0-9A-Za-z])")
_SCRIPT = re.compile(r"([\^_])\s*\{\s*([A-Za-z0-9°']|[+-]?[0-9]+)\s*\}(?![0-9])")
_LONE_GROUP = re.compile(r"(?<![\^_}\\A-Za-z\]])\{\s*([^{},\\]*)\s*\}(?!\s*\{)")


def plain(text: str) -> str:
    """Return the text without typesetting."""
    if len(text) > _CHARACTERS:
        return text
    text = _SUPERSCRIPT.sub(
        lambda match: "^" + match[0].translate(_SUPERSCRIPTS), text.translate(_TRANSLATED)
    )
    text = _BOLD.sub(r"\1", text)
    text = _MATHEMATICS.sub(
        lambda match: match[1] or match[2], text.replace(r"\$", _DOLLAR)
    ).replace(_DOLLAR, "$")
    text = _TILDE.sub(" ", text)
    if not ("\\" in text or "{" in text or "^" in text):
        return text
    text = _LATEX_THOUSANDS.sub(SEPARATOR, _ESCAPED_TWICE.sub(r"\\", text))
    # Repeated because these commands are nested in each other.
    for _ in range(3):
        text = _WRAPPED.sub(r" \1 ", _SCRIPT.sub(r"\1\2", text))
    text = _COMMAND.sub(lambda command: _COMMANDS.get(command[1], command[0]), text)
    text = _BETWEEN.sub(r"\1{", text)
    text = _BARE_PART.sub(r"\\\1{\2}", text)
    text = _BARE_BELOW.sub(r"\1{\2}", text)
    text = _LONE_GROUP.sub(r"\1", _SCRIPT.sub(r"\1\2", text))
    return re.sub(r"\s*\^\s*", "^", text).replace("^°", "°")
