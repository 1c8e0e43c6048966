"""Decisions and speed of the steps that use lists, and datatrove's on the same documents, in one run.

    python bench/corpus/lists.py DOCUMENTS.jsonl PYTHON

DOCUMENTS has a `text` and a `url` a line; PYTHON is that of an environment with datatrove, ftfy, tldextract
and pyahocorasick. datatrove's own lists of words are used on both sides, with a tenth of the hosts as blocked
domains (at most a thousand); half of the URLs get one to three of the words. Masks don't take turns, since
datatrove's do across documents. Both sides run one after the other in a process each; times are CPU seconds
without loading.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

STEPS = ("urls", "repair", "pii")
LISTS = ("words", "subwords", "soft_words")


def main() -> None:
    """Print, for each step, how many decisions are equal and how fast both sides are."""
    documents, peer = Path(sys.argv[1]), sys.argv[2]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        assets = subprocess.run(
            [peer, "-c", "from datatrove.utils._import_utils import ASSETS_PATH as p; print(p)"],
            capture_output=True, text=True, check=True,
        ).stdout.strip()  # fmt: skip
        _write_inputs(documents, path, Path(assets))
        results = []
        for python, side in ((sys.executable, "raymill"), (peer, "datatrove")):
            subprocess.run([python, __file__, "--side", side, folder], check=True)
            results.append(json.loads((path / f"{side}.json").read_text()))
    ours, theirs = results
    for step in STEPS:
        pairs = [*zip(ours[step]["results"], theirs[step]["results"], strict=True)]
        equal = sum(a == b for a, b in pairs)
        changed = len({i for i, (_, b) in enumerate(pairs) if b not in (None, "same")})
        speeds = [len(pairs) / side[step]["seconds"] for side in results]
        print(
            f"{step}: {equal} of {len(pairs)} equal ({changed} dropped or changed by datatrove); "
            f"{speeds[0]:,.0f} and {speeds[1]:,.0f} documents per CPU-second ({speeds[0] / speeds[1]:.1f}x)"
        )
        for a, b in [pair for pair in pairs if pair[0] != pair[1]][:5]:
            print(f"    {str(a)[:100]!r} and {str(b)[:100]!r}")


def _write_inputs(documents: Path, folder: Path, assets: Path) -> None:
    draw = random.Random(1)
    names = ("banned_words.txt", "banned_subwords.txt", "soft_banned_words.txt")
    words = []
    for name, stored in zip(LISTS, names, strict=True):
        lines = (assets / stored).read_text().splitlines()
        (folder / name).write_text("\n".join(lines))
        words.append([line for line in lines if line and not line.startswith("#")])
    records = [json.loads(line) for line in documents.read_text().splitlines()]
    hosts = sorted({urlsplit(record["url"]).hostname or "" for record in records})
    (folder / "domains").write_text("\n".join(draw.sample(hosts, min(1000, len(hosts) // 10))))
    for record in records:
        if draw.random() < 0.5:
            chosen = [draw.choice(draw.choice(words)) for _ in range(draw.randrange(1, 4))]
            record["url"] += "/" + draw.choice("-/_").join(chosen)
    (folder / "documents.jsonl").write_text("\n".join(map(json.dumps, records)))


def _run(side: str, folder: Path) -> None:
    """Apply one side's steps to all documents, each step to the text as it is read."""
    records = [json.loads(line) for line in (folder / "documents.jsonl").read_text().splitlines()]
    steps = _raymill(folder) if side == "raymill" else _datatrove(folder)
    report = {}
    for name, step in steps.items():
        step(records[0])
        started = time.process_time()
        results = [step(record) for record in records]
        report[name] = {"seconds": time.process_time() - started, "results": results}
    (folder / f"{side}.json").write_text(json.dumps(report))


Step = Callable[[dict[str, str]], str | None]


def _raymill(folder: Path) -> dict[str, Step]:
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "platform"))
    from raymill.data.corpus.cleaning.pii import Pii
    from raymill.data.corpus.cleaning.repair import Repair
    from raymill.data.corpus.cleaning.step import CleaningStep
    from raymill.data.corpus.cleaning.urls import Urls
    from raymill.data.corpus.draft import Draft

    lists = {name: (str(folder / name),) for name in ("domains", *LISTS)}
    urls = Urls(**lists, urls=(), min_soft_words=2)

    def decide(record: dict[str, str]) -> str | None:
        return urls.apply(Draft(record["text"], "bench", url=record["url"]))

    def changes(step: CleaningStep) -> Step:
        def apply(record: dict[str, str]) -> str:
            draft = Draft(record["text"], "bench")
            step.apply(draft)
            return "same" if draft.text == record["text"] else draft.text

        return apply

    pii = Pii(("email@example.com",), ("22.214.171.124",), (), True, None)
    return {"urls": decide, "repair": changes(Repair("auto")), "pii": changes(pii)}


def _datatrove(folder: Path) -> dict[str, Step]:
    from datatrove.data import Document
    from datatrove.pipeline.filters import URLFilter
    from datatrove.pipeline.formatters import FTFYFormatter, PIIFormatter
    from tldextract import TLDExtract

    lists = {name: (folder / name).read_text().splitlines() for name in ("domains", *LISTS)}
    urls = URLFilter(
        extra_domains=lists["domains"],
        banned_words=[word for word in lists["words"] if word],
        banned_subwords=[word for word in lists["subwords"] if word],
        soft_banned_words=[word for word in lists["soft_words"] if word],
        use_integrated_lists=False,
    )
    # The snapshot in the package, without network.
    urls.tldextractor = TLDExtract(suffix_list_urls=())
    names = {"subdomain": "domain", "hard_blacklisted": "word", "soft_blacklisted": "soft_words",
             "blacklisted_subword": "subword"}  # fmt: skip

    def decide(record: dict[str, str]) -> str | None:
        kept = urls.filter(Document(text="", id="", metadata={"url": record["url"]}))
        return None if kept is True else names.get(kept[1], kept[1])

    def changes(formatter: FTFYFormatter | PIIFormatter) -> Step:
        def apply(record: dict[str, str]) -> str:
            text = formatter.format(record["text"])
            return "same" if text == record["text"] else text

        return apply

    pii = PIIFormatter(email_replacement="email@example.com", ip_replacement="22.214.171.124")
    return {"urls": decide, "repair": changes(FTFYFormatter()), "pii": changes(pii)}


if __name__ == "__main__":
    if sys.argv[1] == "--side":
        _run(sys.argv[2], Path(sys.argv[3]))
    else:
        main()
