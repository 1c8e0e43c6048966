"""Cleaning by rules compared with datatrove's: the same documents, filters and thresholds, one process each.

    .venv/bin/python bench/corpus/cleaning.py documents.jsonl --peers ENVIRONMENT/bin/python [--json FILE]

`documents.jsonl` has records with `text`. `--peers` is the Python of an environment with `pip install
'datatrove[processing]' spacy`. Each filter sees every document as it was read; then the pipeline of FineWeb's
filters sees each until one drops it. CPU-seconds are of one process, user and system, without imports and
without reading. Decisions are compared one by one, and those that differ are counted by both reasons.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

PIPELINE = ("gopher_repetition", "gopher_quality", "c4", "fineweb")
FILTERS = (*PIPELINE, "c4_terminal", "c4_paragraphs")
# Decisions that need no words at all, or only whether a line has three pieces.
WITHOUT_WORDS = (
    "lines_of_gopher_repetition",
    "c4",
    "c4_terminal",
    "c4_paragraphs",
    "lines_of_fineweb",
)
# datatrove's names of the reasons, and ours.
REASONS = {
    "gopher_short_doc": "too_few_words", "gopher_long_doc": "too_many_words",
    "gopher_below_avg_threshold": "short_words", "gopher_above_avg_threshold": "long_words",
    "gopher_too_many_hashes": "too_many_hashes", "gopher_too_many_ellipsis": "too_many_ellipses",
    "gopher_too_many_bullets": "too_many_bullets", "gopher_too_many_end_ellipsis": "lines_cut_off",
    "gopher_below_alpha_threshold": "words_without_letters", "gopher_enough_stop_words": "too_few_stop_words",
    "dup_para_frac": "duplicate_paragraphs", "dup_para_char_frac": "duplicate_paragraph_characters",
    "dup_line_frac": "duplicate_lines", "dup_line_char_frac": "duplicate_line_characters",
    **{f"top_{n}_gram": f"top_{n}gram" for n in (2, 3, 4)},
    **{f"duplicated_{n}_n_grams": f"duplicate_{n}grams" for n in range(5, 11)},
    "line_punct_ratio": "unpunctuated_lines", "short_line_ratio": "short_lines",
    "char_dup_ratio": "duplicate_characters", "list_ratio": "list", "< 3 paragraphs": "too_few_long_lines",
}  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """Decisions of one program: the CPU-seconds by filter, the reason by filter and document ("" for kept),
    and the digest of the text that the pipeline leaves."""

    seconds: dict[str, float]
    reasons: dict[str, list[str]]
    texts: list[str]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("documents", type=Path)
    parser.add_argument("--peers", type=Path, required=True)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--show", type=int, default=10, help="documents to list that differ")
    parser.add_argument("--program", choices=("raymill", "datatrove"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.program is not None:
        print(json.dumps(_measured(arguments.program, _texts(arguments.documents)).__dict__))
        return
    ours = _run(Path(sys.executable), "raymill", arguments.documents)
    theirs = _run(arguments.peers, "datatrove", arguments.documents)
    report(ours, theirs, _texts(arguments.documents), arguments)


def report(
    ours: Outcome, theirs: Outcome, texts: Sequence[str], arguments: argparse.Namespace
) -> None:
    """Print both tables, the decisions that differ, and write all as JSON."""
    count, megabytes = len(texts), sum(len(text.encode()) for text in texts) / 1e6
    print(f"{count} documents, {megabytes:.1f} MB\n")
    print(f"{'':28}{'documents per CPU-second':>27}{'':>9}{'decisions':>11}{'reasons':>9}")
    print(f"{'filter':28}{'raymill':>14}{'datatrove':>13}{'ratio':>9}{'equal':>11}{'equal':>9}")
    rows: list[dict[str, object]] = []
    for name in theirs.reasons:
        pairs = list(zip(ours.reasons[name], theirs.reasons[name], strict=True))
        row = {
            "filter": name,
            "needs_words": name not in WITHOUT_WORDS,
            "raymill_documents_per_cpu_second": count / ours.seconds[name],
            "datatrove_documents_per_cpu_second": count / theirs.seconds[name],
            "ratio": theirs.seconds[name] / ours.seconds[name],
            "equal_decisions": sum(bool(a) == bool(b) for a, b in pairs) / count,
            "equal_reasons": sum(a == b for a, b in pairs) / count,
            "dropped": sum(bool(b) for _, b in pairs) / count,
            "differences": Counter(
                f"{a or 'kept'} / {b or 'kept'}" for a, b in pairs if bool(a) != bool(b)
            ),
        }
        rows.append(row)
        print(
            f"{name:28}{row['raymill_documents_per_cpu_second']:14,.0f}"
            f"{row['datatrove_documents_per_cpu_second']:13,.0f}{row['ratio']:9.1f}"
            f"{row['equal_decisions']:11.2%}{row['equal_reasons']:9.2%}"
        )
    kept = [
        i for i in range(count) if not ours.reasons["pipeline"][i] + theirs.reasons["pipeline"][i]
    ]
    same = sum(ours.texts[i] == theirs.texts[i] for i in kept)
    print(f"\nequal texts of {len(kept)} documents that both keep: {same}")
    for row in rows:
        for difference, times in Counter(row["differences"]).most_common(arguments.show):
            print(f"{row['filter']}: {times} × {difference}")
    if arguments.json is not None:
        result = {
            "documents": count,
            "megabytes": megabytes,
            "filters": rows,
            "kept": len(kept),
            "same": same,
        }
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


def _run(python: Path, program: str, documents: Path) -> Outcome:
    command = [str(python), __file__, str(documents), "--peers", str(python), "--program", program]
    with tempfile.TemporaryFile("w+") as output:
        subprocess.run(command, stdout=output, check=True)
        output.seek(0)
        return Outcome(**json.loads(output.read().splitlines()[-1]))


def _texts(documents: Path) -> list[str]:
    with documents.open(encoding="utf-8") as lines:
        return [json.loads(line)["text"] for line in lines]


def _measured(program: str, texts: Sequence[str]) -> Outcome:
    judge = _raymill() if program == "raymill" else _datatrove()
    seconds, reasons, left = {}, {}, []
    for name in (*FILTERS, *(name for name in WITHOUT_WORDS if name not in FILTERS), "pipeline"):
        judge(name, "A first text loads what is needed. " * 50)
        started = _cpu_seconds()
        judged = [judge(name, text) for text in texts]
        seconds[name] = _cpu_seconds() - started
        reasons[name] = [REASONS.get(reason, reason) for reason, _ in judged]
        if name == "pipeline":
            left = [text for _, text in judged]
    return Outcome(seconds, reasons, left)


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


Judge = Callable[[str, str], tuple[str, str]]


def _raymill() -> Judge:
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "platform"))
    from raymill.config.compose import load
    from raymill.data.corpus.cleaning.declared import declared_steps
    from raymill.data.corpus.draft import Draft

    def steps(preset: str, *overrides: str) -> dict:
        job = load("prepare", ["data=files", "data.path=.", f"data/cleaning={preset}", *overrides])
        problems: list[str] = []
        declared = declared_steps(job.data.cleaning, problems)
        assert not problems, problems
        return {step.key: step for step in declared}

    fineweb = steps("fineweb")
    filters = {name: [fineweb[name]] for name in PIPELINE}
    filters["pipeline"] = [fineweb[name] for name in PIPELINE]
    filters["c4_terminal"] = [steps("c4")["c4"]]
    filters["c4_paragraphs"] = [steps("mc4")["c4_paragraphs"]]
    off = [f"data.cleaning.gopher_repetition.max_{name}=null" for name in _NGRAMS]
    filters["lines_of_gopher_repetition"] = [steps("gopher", *off)["gopher_repetition"]]
    off = ["data.cleaning.fineweb.max_newlines_per_word=null"]
    filters["lines_of_fineweb"] = [steps("fineweb", *off)["fineweb"]]

    def judge(name: str, text: str) -> tuple[str, str]:
        draft = Draft(text, "bench")
        reason = next((reason for step in filters[name] if (reason := step.clean(draft))), "")
        return reason, draft.text

    return judge


_NGRAMS = [f"top_{n}gram" for n in (2, 3, 4)] + [f"duplicate_{n}grams" for n in range(5, 11)]


def _datatrove() -> Judge:
    from datatrove.data import Document
    from datatrove.pipeline import filters as peers

    from datatrove.pipeline.filters.c4_filters import C4ParagraphFilter

    made = {
        "gopher_repetition": peers.GopherRepetitionFilter(),
        "gopher_quality": peers.GopherQualityFilter(),
        "c4": peers.C4QualityFilter(filter_no_terminal_punct=False),
        "fineweb": peers.FineWebQualityFilter(),
        "c4_terminal": peers.C4QualityFilter(),
        "c4_paragraphs": C4ParagraphFilter(),
        "lines_of_gopher_repetition": peers.GopherRepetitionFilter(top_n_grams=(), dup_n_grams=()),
        "lines_of_fineweb": peers.FineWebQualityFilter(new_line_ratio=1e9),
    }
    steps = {name: [step] for name, step in made.items()}
    steps["pipeline"] = [made[name] for name in PIPELINE]

    def judge(name: str, text: str) -> tuple[str, str]:
        document = Document(text=text, id="")
        for step in steps[name]:
            result = step.filter(document)
            if result is not True:
                return (result[1] if isinstance(result, tuple) else "dropped"), document.text
        return "", document.text

    return judge


if __name__ == "__main__":
    main()
