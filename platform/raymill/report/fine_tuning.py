"""Report of a fine-tuning run: relevance, length and honesty of the answers, and forgetting."""

from __future__ import annotations

from pathlib import Path

from raymill.data.chat.questions import read_questions
from raymill.data.store.manifest import PreparedData
from raymill.data.store.split import TRAIN
from raymill.evaluate.answers import refuses
from raymill.evaluate.spelling import spelling_refusal_f1
from raymill.reading import read_json
from raymill.report.page import Card, Column, FinishedRun, Tile, by_source, sample_files, sheet
from raymill.schema.jobs import TrainJob

SHOWN = 12  # answers shown on the page
SPELLING = "yardstick/spelling_refusal_f1"
COLUMNS = (
    Column("held-out loss", "eval/loss", ".4f"),
    Column("bits per byte", "eval/bits_per_byte", ".4f"),
    Column("answers, right question", "answers/loss", ".4f"),
    Column("another question", "answers/loss_other_question", ".4f"),
    Column("exact", "answers/exact", ".1%"),
    Column("F1", "answers/f1", ".3f"),
    Column("ended", "answers/ended", ".1%"),
    Column("refusal F1", "answers/refusal_f1", ".3f"),
    Column("forgetting, bits per byte", "forgetting/bits_per_byte", ".4f"),
)


def yardsticks(prepared: PreparedData, job: TrainJob) -> dict[str, float]:
    """Return the refusal F1 that a classifier reaches on the spelling of the questions, without a model."""
    phrase = getattr(job.evaluation, "refusal_phrase", "")
    chat = prepared.manifest.chat
    limit = getattr(job.evaluation, "questions", 0)
    if chat is None or not phrase or not limit:
        return {}
    train: list[tuple[str, bool]] = []
    held_out: list[tuple[str, bool]] = []
    for question in read_questions(prepared.folder / chat.questions):
        pair = (question.question, refuses(question.reference, phrase))
        (train if question.split == TRAIN else held_out).append(pair)
    f1 = spelling_refusal_f1(train, held_out[:limit])
    return {} if f1 is None else {SPELLING: f1}


def fine_tuning_card(run: FinishedRun) -> Card:
    """Return the parts of the report that are specific to fine-tuning."""
    figures = run.summary["figures"]
    headlines = [
        f"held out  loss {figures['eval/loss/before']:.4f} before, {figures['eval/loss']:.4f} after, "
        "per assistant token"
    ]
    tiles = [Tile(f"{figures['eval/loss']:.3f}", "held-out loss", True)]
    if "answers/loss" in figures:
        headlines += _answer_lines(figures)
        tiles += _answer_tiles(figures)
    if "forgetting/bits_per_byte" in figures:
        before, after = (
            figures["forgetting/bits_per_byte/before"],
            figures["forgetting/bits_per_byte"],
        )
        headlines.append(
            f"forgetting  {before:.4f} → {after:.4f} bits per byte of pretraining's held-out text"
        )
        tiles.append(Tile(f"{after - before:+.3f}", "bits per byte forgotten"))
    return Card(
        tuple(headlines), tuple(tiles), COLUMNS, (_answers(run.folder),), by_source(run.prepared, _data),
        ("chat", "model"),
    )  # fmt: skip


def _answer_lines(figures: dict[str, float]) -> list[str]:
    # A model that ignores the question has the same loss after the right question as after another one.
    right, other = figures["answers/loss"], figures["answers/loss_other_question"]
    # The parent's better loss counts, with or without the chat template, which it has never seen.
    base = min(
        figures["answers/loss/before"],
        figures.get("answers/loss_plain", figures["answers/loss/before"]),
    )
    lines = [
        f"answers   loss {right:.4f} after the right question, {other:.4f} after another "
        f"({1 - right / other:.0%} lower); parent {base:.4f}",
        f"          exact {figures['answers/exact']:.1%}, F1 {figures.get('answers/f1', 0):.3f}"
        + (
            f"; {figures['answers/ended']:.1%} end their turn" if "answers/ended" in figures else ""
        ),
    ]
    if "answers/refusal_f1" in figures:
        known = figures.get(SPELLING)
        lines.append(
            f"honesty   refusal F1 {figures['answers/refusal_f1']:.3f} (precision "
            f"{figures.get('answers/refusal_precision', 0):.3f}, recall "
            f"{figures.get('answers/refusal_recall', 0):.3f})"
            + (f"; by the spelling of the question alone {known:.3f}" if known is not None else "")
        )
    return lines


def _answer_tiles(figures: dict[str, float]) -> list[Tile]:
    right, other = figures["answers/loss"], figures["answers/loss_other_question"]
    tiles = [
        Tile(f"{1 - right / other:.0%}", "lower loss after the right question than another"),
        Tile(f"{figures.get('answers/f1', 0):.2f}", "F1 of held-out answers"),
    ]
    if "answers/ended" in figures:
        tiles.append(Tile(f"{figures['answers/ended']:.0%}", "end their turn"))
    if "answers/refusal_f1" in figures:
        tiles.append(Tile(f"{figures['answers/refusal_f1']:.2f}", "refusal F1"))
    if SPELLING in figures:
        tiles.append(Tile(f"{figures[SPELLING]:.2f}", "refusal F1 by spelling alone"))
    return tiles


def _answers(run_dir: Path) -> str:
    files = sample_files(run_dir, "answers")
    if not files:
        return ""
    table = read_json(files[-1])
    step = int(files[-1].stem.removeprefix("answers-"))
    return (
        f"<h2>Held-out questions</h2><p class=sub>after step {step:,}, decoded greedily; the parent's "
        f"answers are from before the first step</p>{sheet(table, SHOWN)}"
    )


def _data(prepared: PreparedData) -> tuple[tuple[str, str], ...]:
    manifest, chat = prepared.manifest, prepared.manifest.chat
    assert chat is not None, "prepared conversations carry facts about the chats"
    return (
        (
            "conversations",
            f"{chat.conversations:,} to train on, {chat.learned_tokens:,} tokens with a loss, "
            f"rows packed to {chat.packing:.1%}",
        ),
        ("chat template", f"{chat.template_sha256[:16]}…"),
        (
            "tokenizer",
            f"{manifest.tokenizer.vocab_size:,} ({manifest.tokenizer.fingerprint[:16]}…)",
        ),
    )
