"""Check the words of docstrings, comments, messages, pages and configuration.

    python tools/check_words.py                       # the whole tree, with a summary per room
    python tools/check_words.py platform/raymill/rl   # every finding of some files or folders

A docstring begins with a verb in the imperative or names the thing. Spelling is American, and things have
the names that the field gives them. The exit status is 1 if a line breaks a rule. A line that has to keep a
word ends in `words: keep` (in a comment; in Markdown, `<!-- words: keep -->`).
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# A docstring that begins with one of these words is half a sentence, or stands for a noun that exists.
OPENINGS = """
what which who whose whom how where when why whether whatever whoever wherever however
it its they their them this that these those he she we our you your i
of to from with without by as in into on at for before after until since within between
under over beside through and or also but not though although because if so than then
"""
FIRST_WORDS = frozenset(OPENINGS.split())

# British spelling -> American spelling. Stems stand for their endings.
SPELLING = {
    r"behaviour\w*": "behavior",
    r"colour\w*": "color",
    r"favour\w*": "favor",
    r"honour\w*": "honor",
    r"neighbour\w*": "neighbor",
    r"labour\w*": "labor",
    r"rumour\w*": "rumor",
    r"endeavour\w*": "endeavor",
    r"centre[ds]?|centring": "center, centering",
    r"cancell(?:ed|ing)": "canceled, canceling",
    r"label(?:led|ling)": "labeled, labeling",
    r"model(?:led|ling)": "modeled, modeling",
    r"signal(?:led|ling)": "signaled, signaling",
    r"travel(?:led|ling)": "traveled, traveling",
    r"total(?:led|ling)": "totaled, totaling",
    r"spelt|learnt|burnt": "spelled, learned, burned",
    r"judgement\w*": "judgment",
    r"artefact\w*": "artifact",
    r"catalogue\w*": "catalog",
    r"grey\w*": "gray",
    r"whilst|amongst": "while, among",
    r"licences?": "license",
    r"defences?|offences?": "defense, offense",
    r"programmes?": "program",
    r"fulfil(?:s|ment)?": "fulfill",
    r"towards|afterwards|upwards|downwards|forwards": "toward, afterward, upward, downward, forward",
    r"analys(?:e[ds]?|ing)": "analyze",
    r"(?:\w*(?:normal|initial|optim|serial|token|organ|recogn|summar|general|special|quant|vector|parallel|synchron|"
    r"visual|factor|orthogonal|random|regular|author|categor|character|emphas|minim|maxim|material|custom|local|real|util|"
    r"standard|final|penal|prior|memor|critic|equal|capital))is(?:e[ds]?|ing|ations?|ers?)": "-ize",
}

# Word of ours -> the field's word, or plain English. The table of terms is docs/glossary.md.
WORDS = {
    r"desks?": "rollout backend",
    r"crews?": "actor pool",
    r"caged?|cages": "sandbox, sandbox child",
    r"disband\w*|hires?|hired": "shut down, spawn",
    r"pulses?|heartbeats? of beats": "heartbeat",
    r"tally|tallies": "sums",
    r"quieten\w*": "silence",
    r"told|tells? apart": "reported, logged, printed; distinguished",
    r"beside": "next to, along with, compared with",
    r"anew": "again",
    r"mended|mends?": "fixed, fix",
    r"needn't|mustn't|oughtn't|shan't|mayn't": "need not, must not",
    r"to be had": "available",
    r"for ever": "forever",
    r"maybe": "perhaps, possibly",
    r"sign of life|signs of life": "heartbeat",
    r"(?:goes|go|went|gone|going) on(?! (?:a|an|the|its|each|top)\b)": "continue",
    r"(?:takes?|took|taken|taking) (?:it )?up(?= (?:again|in|the|by|elsewhere|without)\b|[,.;])": (
        "resume, take over"
    ),
    r"made again|makes? again": "repeated",
    r"yardsticks?": "baseline",
    r"makes? sure of|made sure of": "check, verify",
    r"come what may|and no more": "(leave out)",
    r"whose turn|of which one|of whom": "(name the thing)",
    r"(?:by|of|for|from|to|than|with|in|on|as|and) who(?:ever)?|who else": (
        "the holder, the caller, the reader …"
    ),
    r"(?:tokens|bytes|[kMG]i?B|rows|samples|FLOPs|seconds|messages|answers|steps|parameters|micro-batches|megabytes|nats)"
    r" an? (?:second|minute|hour|day|step|worker|rank|node|answer|parameter|GPU|process)": "per",
    r"once an? (?:second|minute|step|worker|rank|node|run|process|update)": "once per",
}

PYTHON = re.compile(
    r'(?P<string>(?:\b[rRbBfFuU]{1,2})?(?:"""(?:[^\\]|\\.)*?"""|\'\'\'(?:[^\\]|\\.)*?\'\'\'|"(?:[^"\\\n]|\\.)*"|'
    r"'(?:[^'\\\n]|\\.)*'))|(?P<comment>#[^\n]*)",
    re.DOTALL,
)
# Names of things are not prose: code in backticks, addresses, placeholders of f-strings, paths.
NAMES = re.compile(
    r"`[^`\n]*`|https?://\S+|\{[^{}\n]*\}|[\w.*<>-]*/[\w./*<>-]+|\w+[._=]\w[\w.=]*|@\w+"
)
ALLOWED = "words: keep"
RULES = [
    (re.compile(rf"(?<![\w-])(?:{pattern})(?![\w-])", re.IGNORECASE), better)
    for pattern, better in (SPELLING | WORDS).items()
]
ANY_RULE = re.compile("|".join(f"(?:{rule.pattern})" for rule, _ in RULES), re.IGNORECASE)
# Example data and pages of other projects' words.
SKIPPED = ("platform/raymill/data/demo/", "tools/check_words.py", "CHANGELOG.md")


@dataclass(frozen=True)
class Finding:
    path: str
    line: int
    text: str

    @property
    def room(self) -> str:
        parts = self.path.split("/")
        return "/".join(parts[:3] if parts[0] == "platform" else parts[:1])


def tracked(paths: list[str]) -> list[str]:
    """Tracked files below the given paths, relative to the root of the tree."""
    done = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *paths],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    endings = (".py", ".md", ".yaml", ".yml", ".toml")
    return [
        path
        for path in done.stdout.splitlines()
        if (path.endswith(endings) or path == "Makefile")
        and not path.startswith(SKIPPED)
        and (ROOT / path).exists()
    ]


def prose(path: str, text: str) -> Iterator[tuple[int, str]]:
    """Yield the first line's number and the text of every stretch of prose in a file."""
    if path.endswith(".md"):
        # Fenced code keeps its lines, emptied, so that line numbers stay.
        blank = re.sub(
            r"^(```|~~~).*?^\1", lambda m: "\n" * m[0].count("\n"), text, flags=re.M | re.S
        )
        yield 1, re.sub(r"\]\([^)]*\)", "]", blank)
    elif path.endswith(".py"):
        for match in PYTHON.finditer(text):
            kind, piece = match.lastgroup, match[0]
            # Strings of a test are data; a string without spaces is a name.
            if kind == "string" and (piece.count(" ") < 2 or is_data(path, piece)):
                continue
            yield text.count("\n", 0, match.start()) + 1, piece
    else:
        for number, line in enumerate(text.splitlines(), 1):
            if "#" in line:
                yield number, line[line.index("#") :]


def is_data(path: str, piece: str) -> bool:
    return path.startswith("tests/") and '"""' not in piece


def bad_words(path: str, text: str) -> Iterator[Finding]:
    lines = text.splitlines()
    for first, piece in prose(path, text):
        if not ANY_RULE.search(piece):
            continue
        bare = NAMES.sub("", piece)
        for rule, better in RULES:
            for match in rule.finditer(bare):
                number = first + bare.count("\n", 0, match.start())
                if ALLOWED not in lines[number - 1]:
                    yield Finding(path, number, f"{match[0].strip()!r}: {better}")


def bad_openings(path: str, text: str) -> Iterator[Finding]:
    """Yield docstrings that begin with a word of `FIRST_WORDS`."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, kinds) or not node.body:
            continue
        first = node.body[0]
        if not isinstance(first, ast.Expr) or not isinstance(first.value, ast.Constant):
            continue
        docstring = first.value.value
        if not isinstance(docstring, str) or not docstring.split():
            continue
        word = re.split(r"[^\w']", docstring.split()[0])[0]
        if word.lower().removesuffix("'s") in FIRST_WORDS:
            yield Finding(path, first.lineno, f"docstring begins with {word!r}")


def findings(paths: list[str]) -> list[Finding]:
    found = []
    for path in tracked(paths):
        text = (ROOT / path).read_text(encoding="utf-8")
        found += bad_words(path, text)
        if path.endswith(".py"):
            found += bad_openings(path, text)
    return sorted(found, key=lambda finding: (finding.path, finding.line))


def main(arguments: list[str]) -> int:
    paths = [str(Path(argument).resolve().relative_to(ROOT)) for argument in arguments] or ["."]
    found = findings(paths)
    if arguments or len(found) <= 40:
        for finding in found:
            print(f"{finding.path}:{finding.line}: {finding.text}")
    else:
        for room, count in sorted(Counter(finding.room for finding in found).items()):
            print(f"{count:6}  {room}")
    if found:
        print(f"words: {len(found)} to change; `python tools/check_words.py <path>` lists them")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
