"""Section about the main text of pages: which extractor finds it, and what a page may cost.

As in `sections.py`, defaults and explanations of the keys stand in `conf/`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class ExtractionConfig:
    """Extractor of the main text of pages, and limits for each of them.

    `focus` is trafilatura's choice between less text and more of it.
    """

    extractor: Literal["trafilatura", "resiliparse"]
    focus: Literal["balanced", "precision", "recall"]
    max_page_bytes: int
    max_depth: int
    max_cpu_s: float
    max_memory_bytes: int
