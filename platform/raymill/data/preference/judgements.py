"""Who judged which answer better, in 25 bytes a judgement: what units hand on, so that what concerns a whole
folder (agreement, repetitions, contradictions, prompts on both sides) can be counted at its end.

Legend: N judgements.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raymill.data.preference.agreement import nominal_alpha
from raymill.data.store.order import Ints

# `pair`, `prompt`, `annotator`: hashes, of two answers in either order, of their prompt, and of who judged
# (0: nobody knows). `value`: which answer is better, 0 the one whose hash is lower, 1 the other; TIE.
JUDGEMENT = np.dtype([("pair", "<u8"), ("prompt", "<u8"), ("annotator", "<u8"), ("value", "u1")])
TIE = 2

Judgements = NDArray[np.void]  # [N] of JUDGEMENT


def hash64(content: bytes) -> int:
    """64 bits of a digest, never 0."""
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little") or 1


def judgement(
    better: bytes, worse: bytes, tie: bool, prompt: int, annotator: str | None
) -> tuple[int, int, int, int]:
    """One entry; the answers as digests of equal length that differ, the prompt as its hash.

    Answers are told apart by their hashes, not by which was chosen: values then mean nothing by
    themselves, and their chance agreement is even.
    """
    first, second = sorted((better, worse))
    value = TIE if tie else int(better != first)
    who = 0 if annotator is None else hash64(annotator.encode())
    return hash64(first + second), prompt, who, value


def to_text(judgements: Iterable[tuple[int, int, int, int]]) -> str:
    """As a unit hands them on, in JSON."""
    return base64.b64encode(np.array([*judgements], dtype=JUDGEMENT).tobytes()).decode("ascii")


def from_texts(texts: Iterable[str]) -> Judgements:
    """Those of several units, one after the other."""
    return np.frombuffer(b"".join(map(base64.b64decode, texts)), dtype=JUDGEMENT)


def pair_counts(judgements: Judgements) -> dict[str, int]:
    """Distinct `prompts` that have pairs; `duplicates`: judgements that someone has given before;
    `contradictions`: pairs of answers of which either was preferred to the other."""
    preferred = judgements[judgements["value"] != TIE]
    pair, value = preferred["pair"], preferred["value"]
    either = _first(pair, value)
    return {
        "prompts": len(np.unique(preferred["prompt"])),
        "duplicates": len(preferred) - len(_first(pair, preferred["annotator"], value)),
        "contradictions": len(either) - len(np.unique(pair[either])),
    }


def shared_prompts(one: Judgements, other: Judgements) -> int:
    """Prompts that have pairs in both."""
    prompts = [side["prompt"][side["value"] != TIE] for side in (one, other)]
    return len(np.intersect1d(*prompts))


def agreement(judgements: Judgements) -> dict[str, Any] | None:
    """Krippendorff's `alpha` over pairs of answers; values are which is better, or that neither is.

    `pairs` were judged by two people or more, `annotators` of them, in `judgements`; of several by one
    person on one pair the first counts. None where nobody judged what someone else did; alpha is None
    where all values are the same.
    """
    known = judgements[judgements["annotator"] != 0]
    known = known[np.sort(_first(known["pair"], known["annotator"]))]
    pair, count = np.unique(known["pair"], return_counts=True)
    several = known[np.isin(known["pair"], pair[count >= 2])]
    if not len(several):
        return None
    alpha = nominal_alpha(several["pair"], several["value"])
    return {
        "alpha": None if alpha is None else round(alpha, 6),
        "pairs": int((count >= 2).sum()),
        "judgements": len(several),
        "annotators": len(np.unique(several["annotator"])),
    }


def _first(*columns: NDArray[Any]) -> Ints:
    """Where each combination of values [N] stands for the first time, in the order of the values."""
    order = np.lexsort(columns[::-1])
    new = np.ones(len(order), dtype=np.bool_)
    new[1:] = np.any([column[order][1:] != column[order][:-1] for column in columns], axis=0)
    return order[new]
