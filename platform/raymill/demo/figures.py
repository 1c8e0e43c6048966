"""Figures of the demonstration, measured on questions and text that no stage was trained on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from raymill.data.demo import stdlib_corpus
from raymill.data.demo.conversations import conversations
from raymill.data.demo.exercises import BEYOND, KINDS
from raymill.data.demo.stdlib_conversations import ConversationEntry
from raymill.data.store.split import hash_fraction
from raymill.demo.baselines import class_baselines, paired_interval
from raymill.demo.functions import SampledFunctions, longest_copy, parses, sample_functions
from raymill.demo.stage_model import AnsweredQuestion, StageModel, question_of
from raymill.evaluate.answers import DECLINES, refuses
from raymill.evaluate.spelling import spelling_refusal_f1

BEST_OF = 8
# Held-out questions on which the reward rule compares the stages.
COMPARED = 504
STAGES = ("pretrained", "sft", "aligned")
# Each of these question classes is shown with an example.
SHOWN = ("position", "default", "backwards", "sum", "library", "unknown")


@dataclass(frozen=True)
class QuestionClass:
    """A class of `count` held-out questions, with the shares answered right or declined."""

    name: str
    count: int
    right: dict[str, float]  # by stage
    declined: dict[str, float]
    baselines: dict[str, float]


@dataclass(frozen=True)
class Honesty:
    """Declining questions about names that don't exist, by stage.

    `false_refusals`: share of real names declined. `named`: share of answers that contain the name in
    question. `spelling`, `everything`: F1 of a classifier on the name's spelling, and of declining always.
    """

    f1: dict[str, float]
    false_refusals: dict[str, float]
    named: dict[str, float]
    spelling: float | None
    everything: float


@dataclass(frozen=True)
class Gain:
    """Gain of alignment in the reward rule's points, on sampled answers.

    `interval`: (mean, low, high) of the paired difference. `best`: points of the best of eight answers of
    the fine-tuned model.
    """

    before: float
    after: float
    interval: tuple[float, float, float]
    best: float
    verdicts: dict[str, dict[str, int]]  # by stage

    @property
    def share(self) -> float:
        """Gain as a share of the gain of best-of-eight sampling."""
        best_gain = self.best - self.before
        return (self.after - self.before) / best_gain if best_gain > 0 else 0.0


@dataclass(frozen=True)
class Example:
    """A question with the expected answer and the answers of every stage."""

    kind: str
    question: str
    expected: str
    answers: dict[str, str]


@dataclass(frozen=True)
class Figures:
    """All figures of the demonstration; the field names are the keys of demo.json."""

    functions: SampledFunctions | None
    kinds: tuple[QuestionClass, ...]
    honesty: Honesty | None
    gain: Gain | None
    questions: tuple[Example, ...]
    failures: tuple[Example, ...]


def measure(folders: dict[str, Path], fraction: float, seed: int, digest: str) -> Figures:
    """Evaluate the models in `folders` (by stage); the corpus' `digest` selects the examples."""
    entries = conversations(fraction, seed)
    held_out = [entry for entry in entries if entry.held_out]
    training = [entry for entry in entries if not entry.held_out]
    models = {stage: StageModel.load(folder) for stage, folder in folders.items()}
    answered = {}
    for stage, model in models.items():
        answered[stage] = model.answers(held_out)
        right = sum(answer.verdict == "right" for answer in answered[stage])
        print(f"  @{stage}: {right:,} of {len(held_out):,} held-out answers right", flush=True)
    last = answered[[*answered][-1]]
    # A seeded order selects the examples, so that nobody can pick flattering ones.
    order = example_order(held_out, digest, seed)
    by_class = {name: [n for n in order if held_out[n].kind == name] for name in SHOWN}
    wrong = [n for n in order if last[n].verdict == "wrong"]
    return Figures(
        functions=_functions(models, fraction, seed),
        kinds=tuple(_question_class(name, answered, training) for name in KINDS if name != BEYOND),
        honesty=_honesty(answered, training, held_out),
        gain=gain(models, held_out, order, seed) if {"sft", "aligned"} <= models.keys() else None,
        questions=tuple(_example(answered, ns[0]) for ns in by_class.values() if ns),
        failures=tuple(_example(answered, n) for n in wrong[:2]),
    )


def _example(answered: dict[str, list[AnsweredQuestion]], n: int) -> Example:
    first = next(iter(answered.values()))[n]
    answers = {stage: answers[n].text for stage, answers in answered.items()}
    return Example(first.entry.kind, first.question, first.reference, answers)


def _question_class(
    name: str, answered: dict[str, list[AnsweredQuestion]], training: Sequence[ConversationEntry]
) -> QuestionClass:
    in_class = {s: [a for a in answers if a.entry.kind == name] for s, answers in answered.items()}
    held_out = [answer.entry for answer in next(iter(in_class.values()))]
    known = [entry for entry in training if entry.kind == name]
    counts = {stage: Counter(a.verdict for a in answers) for stage, answers in in_class.items()}
    return QuestionClass(
        name,
        len(held_out),
        {stage: count["right"] / len(held_out) for stage, count in counts.items()},
        {stage: count["declined"] / len(held_out) for stage, count in counts.items()},
        class_baselines(known, held_out),
    )


def _honesty(
    answered: dict[str, list[AnsweredQuestion]],
    training: Sequence[ConversationEntry],
    held_out: Sequence[ConversationEntry],
) -> Honesty:
    about_names = ("library", "unknown")
    real = [n for n, entry in enumerate(held_out) if entry.kind == "library"]
    # Declining is right for made-up names and wrong for real ones, so both are needed for F1.
    made_up = [n for n, entry in enumerate(held_out) if entry.kind == "unknown"]
    f1, false, named = {}, {}, {}
    for stage, answers in answered.items():
        declined = [refuses(answer.text, DECLINES) for answer in answers]
        hits, wrong = sum(declined[n] for n in made_up), sum(declined[n] for n in real)
        f1[stage] = 2 * hits / max(hits + wrong + len(made_up), 1)
        false[stage] = wrong / max(len(real), 1)
        both = [answers[n] for n in (*real, *made_up)]
        named[stage] = sum(f"`{a.entry.name}`" in a.text for a in both) / max(len(both), 1)
    pairs = [
        [(question_of(e), e.kind == "unknown") for e in split if e.kind in about_names]
        for split in (training, held_out)
    ]
    share = len(made_up) / max(len(made_up) + len(real), 1)
    return Honesty(
        f1, false, named, spelling_refusal_f1(pairs[0], pairs[1]), 2 * share / (1 + share)
    )


def example_order(held_out: Sequence[ConversationEntry], digest: str, seed: int) -> list[int]:
    """Return the held-out questions' indices in a random order seeded by the corpus' digest."""
    return sorted(range(len(held_out)), key=lambda n: hash_fraction(f"{digest} {n}", seed))


def gain(
    models: dict[str, StageModel],
    held_out: Sequence[ConversationEntry],
    order: Sequence[int],
    seed: int,
) -> Gain:
    """Measure the gain of "aligned" over "sft" on the first questions in that order, with sampled answers."""
    compared = [held_out[n] for n in order[:COMPARED]]
    print(f"  sampling {BEST_OF} answers to each of {len(compared)} questions …", flush=True)
    samples = []
    for number in range(BEST_OF):
        samples.append(models["sft"].answers(compared, temperature=1.0, seed=seed + number))
        print(f"  sampled {number + 1} of {BEST_OF}", flush=True)
    sampled = {
        "sft": samples[0],
        "aligned": models["aligned"].answers(compared, temperature=1.0, seed=seed),
    }
    points = {stage: [answer.points for answer in answers] for stage, answers in sampled.items()}
    # The mean of all samples estimates the fine-tuned model better than a single sample does.
    before = [sum(sample[n].points for sample in samples) / BEST_OF for n in range(len(compared))]
    best = [max(sample[n].points for sample in samples) for n in range(len(compared))]
    differences = [a - b for a, b in zip(points["aligned"], before, strict=True)]
    return Gain(
        before=sum(before) / len(before),
        after=sum(points["aligned"]) / len(compared),
        interval=paired_interval(differences),
        best=sum(best) / len(best),
        verdicts={s: dict(Counter(a.verdict for a in answers)) for s, answers in sampled.items()},
    )


def _functions(
    models: dict[str, StageModel], fraction: float, seed: int
) -> SampledFunctions | None:
    if "pretrained" not in models:
        return None
    written = sample_functions(models["pretrained"], seed)
    print(f"  searching {len(written)} functions for copies of training text …", flush=True)
    corpus = stdlib_corpus.entries()
    families = stdlib_corpus.held_out_families(corpus, fraction, seed)
    training = (stdlib_corpus.read(e.name) for e in corpus if e.family not in families)
    parsed = sum(map(parses, written)) / len(written)
    return SampledFunctions(written, parsed, longest_copy(written, training))
