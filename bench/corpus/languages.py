"""Accuracy of language identification on Debian's translated handbooks, page by page.

    apt-get download debian-handbook && dpkg-deb -x debian-handbook_*.deb handbook
    python bench/corpus/languages.py handbook

Translations have untranslated pages and parts. A page counts if at most 30% of its characters stand in lines
that its English version has, too: the rest is in the language of its folder.
"""

from __future__ import annotations

import sys
import time
from collections import Counter, defaultdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "platform"))

from resiliparse.extract.html2text import extract_plain_text

from raymill.data.corpus.cleaning.language import Language
from raymill.data.corpus.draft import Draft

# Norwegian's Bokmål has no code of its own in py3langid, or counts as Norwegian.
EQUAL = {"nb": ("nb", "no")}
LEAST_CHARACTERS = 200
MOST_ENGLISH = 0.3
CHARACTERS = (300, 1000, 2000, 4000)


def pages(folder: Path) -> dict[str, dict[str, str]]:
    """Return the texts of pages by language and name."""
    found: dict[str, dict[str, str]] = defaultdict(dict)
    for path in sorted(folder.rglob("*.html")):
        language = next((part for part in path.parts if part[2:3] == "-" and len(part) == 5), None)
        if language is not None:
            html = path.read_text(encoding="utf-8", errors="replace")
            found[language][path.name] = extract_plain_text(html, main_content=True)
    return found


def english_share(text: str, english: str) -> float:
    """Return the share of a text's characters in lines that the English text has."""
    lines = [line.strip() for line in text.split("\n")]
    known = {line.strip() for line in english.split("\n")}
    total = sum(map(len, lines))
    return sum(len(line) for line in lines if line in known) / max(total, 1)


def main() -> None:
    """Print the accuracy by language, and by the number of characters that are looked at."""
    found = pages(Path(sys.argv[1]))
    english = found["en-US"]
    counted = [
        (folder, text)
        for folder, texts in sorted(found.items())
        for name, text in texts.items()
        if len(text) >= LEAST_CHARACTERS
        and (folder == "en-US" or english_share(text, english.get(name, "")) <= MOST_ENGLISH)
    ]
    print(
        f"{sum(map(len, found.values()))} pages, {len(counted)} of them translated and long enough"
    )
    for characters in CHARACTERS:
        step = Language((), 0.0, {}, characters)
        step.apply(Draft("Loads the model.", "bench"))
        right: Counter[str] = Counter()
        wrong: Counter[tuple[str, str]] = Counter()
        started = time.process_time()
        for folder, text in counted:
            draft = Draft(text, "bench")
            step.apply(draft)
            code = folder[:2]
            if draft.language in EQUAL.get(code, (code,)):
                right[folder] += 1
            else:
                wrong[folder, draft.language] += 1
        seconds = time.process_time() - started
        print(
            f"characters={characters}: {right.total() / len(counted):.2%} of {len(counted)} pages, "
            f"{len(counted) / seconds:,.0f} pages per CPU-second"
        )
    totals = Counter(folder for folder, _ in counted)
    for folder, total in sorted(totals.items()):
        others = {language: count for (of, language), count in wrong.items() if of == folder}
        print(f"  {folder}  {right[folder]}/{total}  {others or ''}")


if __name__ == "__main__":
    main()
