"""Repair: the same text as ftfy's, which looks at every line."""

from __future__ import annotations

import random
import time

import ftfy
import pytest

from raymill.data.corpus.cleaning.repair import Repair
from raymill.data.corpus.draft import Draft


def repaired(text: str, unescape_html: bool | str) -> str:
    draft = Draft(text, "web")
    # As an override on the command line gives it.
    assert Repair(unescape_html).apply(draft) is None  # type: ignore[arg-type]
    return draft.text


def reference(text: str, unescape_html: bool | str) -> str:
    """Repair with the settings of datatrove's FTFYFormatter."""
    config = ftfy.TextFixerConfig(
        unescape_html=unescape_html, remove_terminal_escapes=True, fix_encoding=True,
        restore_byte_a0=True, replace_lossy_sequences=True, decode_inconsistent_utf8=True,
        fix_c1_controls=True, fix_latin_ligatures=False, fix_character_width=False,
        uncurl_quotes=False, fix_line_breaks=False, fix_surrogates=True,
        remove_control_chars=True, normalization=None,
    )  # fmt: skip
    return ftfy.fix_text(text, config)


def garbled(seed: int) -> str:
    """Lines in many scripts, some of them decoded wrongly, with entities, tags and control characters."""
    draw = random.Random(seed)
    words = [
        "schön",
        "voilà",
        "œuvre",
        "“quoted”",
        "Привет",
        "こんにちは",
        "✔",
        "naïve",
        "€5",
        "ﬁne",
    ]
    words += ["x<y", "AT&T", "&eacute;", "&amp;lt;", "\x1b[36mblue\x1b[0m", "a\x07b", "\ufeff"]
    words += ["\x85", "\ud83d\ude00", "\r", "à la", "ØªØ"]
    lines = []
    for _ in range(draw.randrange(1, 6)):
        line = " ".join(draw.choices(words, k=draw.randrange(5)))
        if draw.random() < 0.5:
            raw = line.encode("utf-8", "surrogatepass")
            line = raw.decode(draw.choice(("latin-1", "cp1252", "cp1251", "mac_roman")), "replace")
        lines.append(line)
    return "\n".join(lines)


@pytest.mark.parametrize("unescape_html", ["auto", True, False])
def test_equals_ftfy_on_garbled_text(unescape_html: bool | str) -> None:
    texts = [garbled(seed) for seed in range(400)]
    references = [reference(text, unescape_html) for text in texts]
    assert sum(text != fixed for text, fixed in zip(texts, references, strict=True)) > 200
    assert [repaired(text, unescape_html) for text in texts] == references


def test_a_long_line_is_repaired_as_ftfy_does() -> None:
    text = "sÃ³ " * 300_000
    assert repaired(text, "auto") == reference(text, "auto") == "só " * 300_000


@pytest.mark.parametrize(
    "text",
    ["&" + "amp;" * 100_000, "&#5" * 50_000 + "1" + ";" * 50_000, "\x1b[" * 100_000, "Ã" * 200_000],
)
def test_hostile_text_is_bounded(text: str) -> None:
    started = time.process_time()
    assert len(repaired(text, "auto")) <= len(text)
    assert time.process_time() - started < 20


def test_entities_within_entities_are_resolved() -> None:
    assert repaired("&amp;amp;lt;", "auto") == reference("&amp;amp;lt;", "auto") == "<"


def test_lines_are_counted() -> None:
    draft = Draft("schÃ¶n\nfine\nvoilÃ  Ã©tÃ©", "web")
    Repair("auto").apply(draft)
    assert draft.text == "schön\nfine\nvoilà été"
    assert draft.signals == {"repair.lines": 2}
