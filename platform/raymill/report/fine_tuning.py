"""The card of a fine-tuning run: whether it answers the question, stops, is honest, and what it forgot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from raymill.data.chat.questions import read_questions
from raymill.data.store.manifest import PreparedData
from raymill.data.store.split import TRAIN
from raymill.evaluate.answers import refuses
from raymill.evaluate.spelling import spelling_refusal_f1
from raymill.reading import read_json
from raymill.report.page import Card, Column, Tile, by_source, sample_files, sheet
from raymill.schema.jobs import TrainJob

SHOWN = 12  # answers on the page
SPELLING = "yardstick/spelling_refusal_f1"
COLUMNS = (
    Column("held-out loss", "eval/loss", ".4f"),
    Column("bits per byte", "eval/bits_per_byte", ".4f"),
    Column("answers, own question", "answers/loss", ".4f"),
    Column("another question", "answers/loss_other_question", ".4f"),
    Column("exact", "answers/exact", ".1%"),
    Column("F1", "answers/f1", ".3f"),
    Column("ended", "answers/ended", ".1%"),
    Column("refusal F1", "answers/refusal_f1", ".3f"),
    Column("forgetting, bits per byte", "forgetting/bits_per_byte", ".4f"),
)


def yardsticks(prepared: PreparedData, job: TrainJob) -> dict[str, float]:
    """What is reached without a model: telling from its spelling whether a question should be refused."""
    phrase = getattr(job.evaluation, "refusal_phrase", "")
    chat = prepared.manifest.chat
    asked = getattr(job.evaluation, "questions", 0)
    if chat is None or not phrase or not asked:
        return {}
    train: list[tuple[str, bool]] = []
    held_out: list[tuple[str, bool]] = []
    for question in read_questions(prepared.folder / chat.questions):
        pair = (question.question, refuses(question.reference, phrase))
        (train if question.split == TRAIN else held_out).append(pair)
    found = spelling_refusal_f1(train, held_out[:asked])
    return {} if found is None else {SPELLING: found}


def fine_tuning_card(
    run_dir: Path,
    prepared: Sequence[PreparedData],
    events: Sequence[dict[str, Any]],
    summary: dict[str, Any],
) -> Card:
    """What a fine-tuning run has to say."""
    found = summary["figures"]
    headlines = [
        f"held out  loss {found['eval/loss/before']:.4f} before, {found['eval/loss']:.4f} after, "
        "per token of the assistant"
    ]
    tiles = [Tile(f"{found['eval/loss']:.3f}", "held-out loss", True)]
    if "answers/loss" in found:
        headlines += _answer_lines(found)
        tiles += _answer_tiles(found)
    if "forgetting/bits_per_byte" in found:
        before, after = found["forgetting/bits_per_byte/before"], found["forgetting/bits_per_byte"]
        headlines.append(
            f"forgetting  {before:.4f} → {after:.4f} bits per byte of pretraining's held-out text"
        )
        tiles.append(Tile(f"{after - before:+.3f}", "bits per byte forgotten"))
    return Card(
        tuple(headlines), tuple(tiles), COLUMNS, (_answers(run_dir),), by_source(prepared, _data),
        ("generate", "model"),
    )  # fmt: skip


def _answer_lines(found: dict[str, float]) -> list[str]:
    own, other = found["answers/loss"], found["answers/loss_other_question"]
    base = min(
        found["answers/loss/before"], found.get("answers/loss_plain", found["answers/loss/before"])
    )
    lines = [
        f"answers   loss {own:.4f} after their own question, {other:.4f} after another "
        f"({1 - own / other:.0%} lower); parent {base:.4f}",
        f"          exact {found['answers/exact']:.1%}, F1 {found.get('answers/f1', 0):.3f}"
        + (f"; {found['answers/ended']:.1%} end their turn" if "answers/ended" in found else ""),
    ]
    if "answers/refusal_f1" in found:
        known = found.get(SPELLING)
        lines.append(
            f"honesty   refusal F1 {found['answers/refusal_f1']:.3f} (precision "
            f"{found.get('answers/refusal_precision', 0):.3f}, recall "
            f"{found.get('answers/refusal_recall', 0):.3f})"
            + (f"; by the question's spelling alone {known:.3f}" if known is not None else "")
        )
    return lines


def _answer_tiles(found: dict[str, float]) -> list[Tile]:
    own, other = found["answers/loss"], found["answers/loss_other_question"]
    tiles = [
        Tile(f"{1 - own / other:.0%}", "lower loss after its own question than another"),
        Tile(f"{found.get('answers/f1', 0):.2f}", "F1 of held-out answers"),
    ]
    if "answers/ended" in found:
        tiles.append(Tile(f"{found['answers/ended']:.0%}", "end their turn"))
    if "answers/refusal_f1" in found:
        tiles.append(Tile(f"{found['answers/refusal_f1']:.2f}", "refusal F1"))
    if SPELLING in found:
        tiles.append(Tile(f"{found[SPELLING]:.2f}", "refusal F1 by spelling alone"))
    return tiles


def _answers(run_dir: Path) -> str:
    files = sample_files(run_dir, "answers")
    if not files:
        return ""
    table = read_json(files[-1])
    step = int(files[-1].stem.removeprefix("answers-"))
    return (
        f"<h2>Held-out questions</h2><p class=sub>after step {step:,}, answered greedily; "
        f"the parent was asked before the first step</p>{sheet(table, SHOWN)}"
    )


def _data(prepared: PreparedData) -> tuple[tuple[str, str], ...]:
    manifest, chat = prepared.manifest, prepared.manifest.chat
    assert chat is not None
    return (
        (
            "conversations",
            f"{chat.conversations:,} to train on, {chat.learned_tokens:,} tokens learned from, "
            f"{chat.packing:.1%} of the rows filled",
        ),
        ("chat template", f"{chat.template_sha256[:16]}…"),
        (
            "tokenizer",
            f"{manifest.tokenizer.vocab_size:,} ({manifest.tokenizer.fingerprint[:16]}…)",
        ),
    )
