"""Every figure that the demonstration ends with, measured on what nobody was trained on."""

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
from raymill.demo.asked import Asked, Speaker, question_of
from raymill.demo.baselines import class_baselines, paired_interval
from raymill.demo.functions import Sampled, longest_copy, parses, sample_functions
from raymill.evaluate.answers import DECLINES, refuses
from raymill.evaluate.spelling import spelling_refusal_f1

BEST_OF = 8
COMPARED = 504  # held-out prompts on which stages are compared by the rule
STAGES = ("pretrained", "sft", "aligned")
SHOWN = ("position", "default", "backwards", "sum", "library", "unknown")  # a question each


@dataclass(frozen=True)
class Kind:
    """A class of questions: shares right per stage and baseline, of so many held-out questions."""

    name: str
    count: int
    right: dict[str, float]  # by stage
    declined: dict[str, float]
    baselines: dict[str, float]


@dataclass(frozen=True)
class Honesty:
    """Declining names that don't exist, by stage: F1 and share of real names declined; and the F1 of the
    spelling classifier and of refusing everything. `named`: share of answers that name what was asked about."""

    f1: dict[str, float]
    false_refusals: dict[str, float]
    named: dict[str, float]
    spelling: float | None
    everything: float


@dataclass(frozen=True)
class Gain:
    """What alignment gained by the rule, on sampled answers: (mean, low, high) of the paired difference, and
    the best of eight answers of the fine-tuned model."""

    before: float
    after: float
    interval: tuple[float, float, float]
    best: float
    verdicts: dict[str, dict[str, int]]  # by stage

    @property
    def share(self) -> float:
        """Of what the best of eight would have gained."""
        room = self.best - self.before
        return (self.after - self.before) / room if room > 0 else 0.0


@dataclass(frozen=True)
class Shown:
    """A question with the expected answer and every stage's."""

    kind: str
    question: str
    expected: str
    answers: dict[str, str]


@dataclass(frozen=True)
class Figures:
    """All of them."""

    functions: Sampled | None
    kinds: tuple[Kind, ...]
    honesty: Honesty | None
    gain: Gain | None
    questions: tuple[Shown, ...]
    failures: tuple[Shown, ...]


def measure(folders: dict[str, Path], fraction: float, seed: int, digest: str) -> Figures:
    """Ask the models in `folders` (by stage); `digest`, the corpus', chooses what is shown."""
    everything = conversations(fraction, seed)
    held_out = [entry for entry in everything if entry.held_out]
    training = [entry for entry in everything if not entry.held_out]
    speakers = {stage: Speaker.load(folder) for stage, folder in folders.items()}
    asked = {}
    for stage, speaker in speakers.items():
        asked[stage] = speaker.answers(held_out)
        right = sum(answer.verdict == "right" for answer in asked[stage])
        print(f"  @{stage}: {right:,} of {len(held_out):,} held-out answers right", flush=True)
    last = asked[[*asked][-1]]
    order = order_of(held_out, digest, seed)
    by_kind = {kind: [n for n in order if held_out[n].kind == kind] for kind in SHOWN}
    wrong = [n for n in order if last[n].verdict == "wrong"]
    return Figures(
        functions=_functions(speakers, fraction, seed),
        kinds=tuple(_kind(name, asked, training) for name in KINDS if name != BEYOND),
        honesty=_honesty(asked, training, held_out),
        gain=gain(speakers, held_out, order, seed)
        if {"sft", "aligned"} <= speakers.keys()
        else None,
        questions=tuple(_shown(asked, places[0]) for places in by_kind.values() if places),
        failures=tuple(_shown(asked, place) for place in wrong[:2]),
    )


def _shown(asked: dict[str, list[Asked]], place: int) -> Shown:
    one = next(iter(asked.values()))[place]
    answers = {stage: answers[place].text for stage, answers in asked.items()}
    return Shown(one.entry.kind, one.question, one.reference, answers)


def _kind(name: str, asked: dict[str, list[Asked]], training: Sequence[ConversationEntry]) -> Kind:
    of_kind = {s: [a for a in answers if a.entry.kind == name] for s, answers in asked.items()}
    held_out = [answer.entry for answer in next(iter(of_kind.values()))]
    known = [entry for entry in training if entry.kind == name]
    counts = {stage: Counter(a.verdict for a in answers) for stage, answers in of_kind.items()}
    return Kind(
        name,
        len(held_out),
        {stage: count["right"] / len(held_out) for stage, count in counts.items()},
        {stage: count["declined"] / len(held_out) for stage, count in counts.items()},
        class_baselines(known, held_out),
    )


def _honesty(
    asked: dict[str, list[Asked]],
    training: Sequence[ConversationEntry],
    held_out: Sequence[ConversationEntry],
) -> Honesty:
    about_names = ("library", "unknown")
    real = [n for n, entry in enumerate(held_out) if entry.kind == "library"]
    made_up = [n for n, entry in enumerate(held_out) if entry.kind == "unknown"]
    f1, false, named = {}, {}, {}
    for stage, answers in asked.items():
        declined = [refuses(answer.text, DECLINES) for answer in answers]
        hits, wrong = sum(declined[n] for n in made_up), sum(declined[n] for n in real)
        f1[stage] = 2 * hits / max(hits + wrong + len(made_up), 1)
        false[stage] = wrong / max(len(real), 1)
        both = [answers[n] for n in (*real, *made_up)]
        named[stage] = sum(f"`{a.entry.name}`" in a.text for a in both) / max(len(both), 1)
    pairs = [
        [(question_of(e), e.kind == "unknown") for e in side if e.kind in about_names]
        for side in (training, held_out)
    ]
    share = len(made_up) / max(len(made_up) + len(real), 1)
    return Honesty(
        f1, false, named, spelling_refusal_f1(pairs[0], pairs[1]), 2 * share / (1 + share)
    )


def order_of(held_out: Sequence[ConversationEntry], digest: str, seed: int) -> list[int]:
    """The held-out questions in the order in which they are chosen, which the corpus decides."""
    return sorted(range(len(held_out)), key=lambda n: hash_fraction(f"{digest} {n}", seed))


def gain(
    speakers: dict[str, Speaker],
    held_out: Sequence[ConversationEntry],
    order: Sequence[int],
    seed: int,
) -> Gain:
    """Measure what "aligned" gained over "sft" on the first questions in that order, by drawn answers."""
    compared = [held_out[place] for place in order[:COMPARED]]
    print(f"  drawing {BEST_OF} answers to each of {len(compared)} questions …", flush=True)
    draws = []
    for number in range(BEST_OF):
        draws.append(speakers["sft"].answers(compared, temperature=1.0, seed=seed + number))
        print(f"  drawn {number + 1} of {BEST_OF}", flush=True)
    drawn = {
        "sft": draws[0],
        "aligned": speakers["aligned"].answers(compared, temperature=1.0, seed=seed),
    }
    points = {stage: [answer.points for answer in answers] for stage, answers in drawn.items()}
    before = [sum(draw[n].points for draw in draws) / BEST_OF for n in range(len(compared))]
    best = [max(draw[n].points for draw in draws) for n in range(len(compared))]
    differences = [after - was for after, was in zip(points["aligned"], before, strict=True)]
    return Gain(
        before=sum(before) / len(before),
        after=sum(points["aligned"]) / len(compared),
        interval=paired_interval(differences),
        best=sum(best) / len(best),
        verdicts={s: dict(Counter(a.verdict for a in answers)) for s, answers in drawn.items()},
    )


def _functions(speakers: dict[str, Speaker], fraction: float, seed: int) -> Sampled | None:
    if "pretrained" not in speakers:
        return None
    written = sample_functions(speakers["pretrained"], seed)
    print(f"  looking for copies of training text in {len(written)} functions …", flush=True)
    corpus = stdlib_corpus.entries()
    families = stdlib_corpus.held_out_families(corpus, fraction, seed)
    training = (stdlib_corpus.read(e.name) for e in corpus if e.family not in families)
    parsed = sum(map(parses, written)) / len(written)
    return Sampled(written, parsed, longest_copy(written, training))
