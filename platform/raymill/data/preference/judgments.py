"""Judgments of answers, in 25 bytes each: units hand them on, and the whole folder's are counted at the end.

Agreement between annotators, repetitions, contradictions and prompts in both splits can't be counted within a
unit.

Legend: N judgments.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from raymill.data.store.hashing import Ints

# `pair`, `prompt` and `annotator` are hashes: of two answers in either order, of their prompt, and of the
# annotator's name (0: unknown). `value` names the better answer, 0 for the one with the lower hash, 1 for the
# other, or is TIE.
JUDGMENT = np.dtype([("pair", "<u8"), ("prompt", "<u8"), ("annotator", "<u8"), ("value", "u1")])
TIE = 2

Judgments = NDArray[np.void]  # [N] of JUDGMENT


def hash64(content: bytes) -> int:
    """Return 64 bits of a digest, never 0."""
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little") or 1


def judgment(
    better: bytes, worse: bytes, tie: bool, prompt: int, annotator: str | None
) -> tuple[int, int, int, int]:
    """Return one entry; the answers are digests of equal length that differ, the prompt is its hash.

    Answers are ordered by their digests, not by which was chosen: if the chosen one always came first, all
    values would be equal and chance agreement would be total.
    """
    first, second = sorted((better, worse))
    value = TIE if tie else int(better != first)
    annotator_hash = 0 if annotator is None else hash64(annotator.encode())
    return hash64(first + second), prompt, annotator_hash, value


def to_text(judgments: Iterable[tuple[int, int, int, int]]) -> str:
    """Encode judgments as text, which a unit's JSON result can hold."""
    return base64.b64encode(np.array([*judgments], dtype=JUDGMENT).tobytes()).decode("ascii")


def from_texts(texts: Iterable[str]) -> Judgments:
    """Decode the judgments of several units, one after the other."""
    return np.frombuffer(b"".join(map(base64.b64decode, texts)), dtype=JUDGMENT)


def pair_counts(judgments: Judgments) -> dict[str, int]:
    """Count distinct prompts, repeated judgments and contradictions.

    `prompts` have at least one pair; `duplicates` are judgments that the same annotator has given before;
    `contradictions` are pairs of answers of which each was preferred to the other.
    """
    preferred = judgments[judgments["value"] != TIE]
    pair, value = preferred["pair"], preferred["value"]
    each_way = _first(pair, value)
    return {
        "prompts": len(np.unique(preferred["prompt"])),
        "duplicates": len(preferred) - len(_first(pair, preferred["annotator"], value)),
        "contradictions": len(each_way) - len(np.unique(pair[each_way])),
    }


def shared_prompts(first: Judgments, second: Judgments) -> int:
    """Count the prompts that have pairs in both."""
    prompts = [split["prompt"][split["value"] != TIE] for split in (first, second)]
    return len(np.intersect1d(*prompts))


def agreement(judgments: Judgments) -> dict[str, float | None] | None:
    """Return how far annotators agree, as Krippendorff's `alpha` over pairs of answers.

    `pairs` is the number of pairs that two annotators or more judged, `annotators` the number of these people
    and `judgments` that of their judgments; of several by one annotator on one pair the first counts.
    Returns None where no pair has two annotators; alpha is None where all values are the same.
    """
    # Judgments without a name can't show agreement between people.
    known = judgments[judgments["annotator"] != 0]
    known = known[np.sort(_first(known["pair"], known["annotator"]))]
    pair, count = np.unique(known["pair"], return_counts=True)
    shared = known[np.isin(known["pair"], pair[count >= 2])]
    if not len(shared):
        return None
    alpha = nominal_alpha(shared["pair"], shared["value"])
    return {
        "alpha": None if alpha is None else round(alpha, 6),
        "pairs": int((count >= 2).sum()),
        "judgements": len(shared),
        "annotators": len(np.unique(shared["annotator"])),
    }


def nominal_alpha(item: NDArray[np.generic], value: NDArray[np.generic]) -> float | None:
    """Return Krippendorff's alpha for nominal values [N] of items [N], by any number of annotators.

    Alpha is 1 − observed/expected disagreement. K. Krippendorff, "Computing Krippendorff's Alpha-Reliability"
    (2011), section D: an item's m values give coincidences o_ck = Σ_u n_uc (n_uk − [c = k]) / (m_u − 1); with
    n_c = Σ_k o_ck and n = Σ_c n_c, alpha = 1 − (n − 1) Σ_{c≠k} o_ck / Σ_{c≠k} n_c n_k. Items with one value
    don't count. Here U counts items (the paper's units) and C different values.

    Returns None where alpha isn't defined: no item has two values, or all values are the same.
    """
    _, item_N = np.unique(item, return_inverse=True)
    _, value_N = np.unique(value, return_inverse=True)
    if not len(item_N):
        return None
    counts_UC = np.zeros((item_N.max() + 1, value_N.max() + 1))
    np.add.at(counts_UC, (item_N, value_N), 1)
    counts_UC = counts_UC[counts_UC.sum(axis=1) >= 2]
    shares_UC = counts_UC / (counts_UC.sum(axis=1, keepdims=True) - 1)
    # The diagonal term removes pairs of a value with itself.
    coincidences_CC = counts_UC.T @ shares_UC - np.diag(shares_UC.sum(axis=0))
    n_C = coincidences_CC.sum(axis=1)
    n = n_C.sum()
    expected = n**2 - (n_C**2).sum()
    if expected <= 0:
        return None
    observed = n - np.trace(coincidences_CC)
    return float(1 - (n - 1) * observed / expected)


def _first(*columns: NDArray[np.generic]) -> Ints:
    """Return where each combination of values [N] occurs first, in the order of the values."""
    # lexsort is stable, so equal combinations stay in their order of occurrence.
    order = np.lexsort(columns[::-1])
    new = np.ones(len(order), dtype=np.bool_)
    new[1:] = np.any([column[order][1:] != column[order][:-1] for column in columns], axis=0)
    return order[new]
