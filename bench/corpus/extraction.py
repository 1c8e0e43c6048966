"""Main text of pages: F1 on trafilatura's gold pages and pages per second of processor time; speed of WARC.

    .venv/bin/python bench/corpus/extraction.py --gold CHECKOUT [--archive FILE.warc.gz …]

CHECKOUT is a checkout of https://github.com/adbar/trafilatura (its package lacks the pages), whose own
`tests/eval_common.py` scores all extractors: "trafilatura" as its evaluation runs it (fast, in this process),
ours as a preparation runs them (in a child process within limits). Each page is extracted once by each of them,
in turns of 250 pages, so that a busy machine slows all of them. An archive is read by fastwarc alone, by warcio
and by our reader without extraction (`bench/corpus/debian_warc.py` writes archives).
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "platform")]

from raymill.data.sources.extracted import PageRecord
from raymill.data.sources.extraction import Page
from raymill.data.sources.extraction_parent import Extractor, Refusal
from raymill.data.sources.inputs import InputRange, Source
from raymill.data.sources.warc import archive_entries
from raymill.schema.extraction_section import ExtractionConfig

TURN = 250


def settings(extractor: Any) -> ExtractionConfig:
    """Return the settings of `conf/shared/text.yaml` with this extractor."""
    return ExtractionConfig(extractor, "balanced", 10 << 20, 250, 10.0, 1 << 30)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gold", type=Path)
    parser.add_argument("--archive", type=Path, nargs="+", default=[])
    arguments = parser.parse_args()
    if arguments.gold:
        compare_extractors(arguments.gold / "tests")
    for path in arguments.archive:
        compare_readers(path)


def processor_s() -> float:
    """Return the processor time of this process and its ended children."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def compare_extractors(tests: Path) -> None:
    """Print F1 and pages per second of processor time of each extractor on the gold pages."""
    sys.path.insert(0, str(tests))
    import eval_common

    gold = eval_common.load_evaldata(str(tests))
    pages = [
        (gold[url], content)
        for url, (_, content) in eval_common.read_corpus(str(tests), gold).items()
    ]

    def theirs(contents: list[bytes]) -> list[str | None]:
        return [
            eval_common.run_and_count(eval_common.RUNNERS["fast"], one, pages[0][0])[0]
            for one in contents
        ]

    def ours(extractor: str) -> Callable[[list[bytes]], list[str | None]]:
        def run(contents: list[bytes]) -> list[str | None]:
            # A child of its own for each turn, whose start isn't counted below.
            child = Extractor(settings(extractor))
            answers = [*child.texts([Page(one) for one in contents])]
            child.close()
            return [None if isinstance(answer, Refusal) else answer for answer in answers]

        return run

    runners = {
        "trafilatura itself": theirs,
        "ours, trafilatura": ours("trafilatura"),
        "ours, resiliparse": ours("resiliparse"),
    }
    # The first call loads libraries; the start of a child is measured with an empty page.
    starts = {}
    for name, run in runners.items():
        run([b"<p>text"])
        before = processor_s()
        run([b"<p>text"])
        starts[name] = processor_s() - before
    matrices = {name: eval_common.ConfusionMatrix() for name in runners}
    seconds = dict.fromkeys(runners, 0.0)
    equal = 0
    for first in range(0, len(pages), TURN):
        turn = pages[first : first + TURN]
        answers = {}
        for name, run in runners.items():
            before = processor_s()
            answers[name] = run([content for _, content in turn])
            seconds[name] += processor_s() - before - starts[name]
            for (item, _), text in zip(turn, answers[name], strict=True):
                matrices[name].add(eval_common.count_item(item, text))
        ours_first = zip(answers["trafilatura itself"], answers["ours, trafilatura"], strict=True)
        equal += sum((one or "") == (other or "") for one, other in ours_first)
    print(f"{len(pages)} gold pages, {sum(len(content) for _, content in pages) / 1e6:.0f} MB")
    for name in runners:
        precision, recall, _, f1 = matrices[name].scores()
        rate = len(pages) / seconds[name]
        print(
            f"  {name:20} F1 {f1:.4f} (P {precision:.3f}, R {recall:.3f}), {rate:6.1f} pages per CPU-second"
        )
    print(f"  the same text as trafilatura itself: {equal / len(pages):.1%} of pages")


def compare_readers(path: Path) -> None:
    """Print the pages and bytes per second of processor time of reading an archive without extraction."""
    from fastwarc.warc import ArchiveIterator
    from warcio.archiveiterator import ArchiveIterator as Warcio

    def fastwarc() -> Iterator[int]:
        for record in ArchiveIterator(str(path), parse_http=True):
            if record.headers.get("WARC-Type") == "response":
                yield len(record.reader.read())

    def warcio() -> Iterator[int]:
        with path.open("rb") as file:
            for record in Warcio(file):
                if record.rec_type == "response":
                    yield len(record.content_stream().read())

    def ours() -> Iterator[int]:
        size = path.stat().st_size
        source = Source(extraction=settings("trafilatura"))
        span = InputRange(path.name, str(path), "warc", "train", 0, size, size, 0, source=source)
        with path.open("rb") as stream:
            for entry in archive_entries(span, stream):
                if isinstance(entry, PageRecord):
                    yield len(entry.page.content)

    print(f"{path.name}, {path.stat().st_size / 1e6:.0f} MB")
    for name, reader in {"fastwarc": fastwarc, "warcio": warcio, "ours": ours}.items():
        before, lengths = time.process_time(), [*reader()]
        seconds = time.process_time() - before
        rates = f"{len(lengths) / seconds:8,.0f} pages, {sum(lengths) / seconds / 1e6:6.0f} MB"
        print(f"  {name:10} {len(lengths):,} pages: {rates} of HTML per CPU-second")


if __name__ == "__main__":
    main()
