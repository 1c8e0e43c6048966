"""Prompts, answers and rewards as a table: a file that MLflow shows as one."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from raymill.durable import write_atomic
from raymill.engine.answer_source import Judged

Decode = Callable[[Sequence[Sequence[int]]], list[str]]


def write_table(
    run_dir: Path, name: str, judged: Judged, decode: Decode, prompts: int, group: int | None = None
) -> str:
    """The first prompts' answers with their rewards; returns the path below the run's folder."""
    rollout = judged.rollout
    chosen = np.flatnonzero(np.isin(rollout.sample_id, np.unique(rollout.sample_id)[:prompts]))
    places = chosen.tolist()
    asked = decode([rollout.prompts[place].tolist() for place in places])
    answered = decode([rollout.answers[place].tolist() for place in places])
    names = list(judged.components)
    table = {
        "columns": ["prompt", "answer", "reward", *names, "tokens", "ended"],
        "data": [
            [
                prompt.strip(),
                answer.strip(),
                _number(judged.rewards[place]),
                *(_number(judged.components[component][place]) for component in names),
                len(rollout.answers[place]),
                bool(rollout.stopped[place]),
            ]
            for place, prompt, answer in zip(places, asked, answered, strict=True)
        ],
    }
    path = f"samples/{name}.json"
    (run_dir / "samples").mkdir(exist_ok=True)
    write_atomic(run_dir / path, json.dumps(table, ensure_ascii=False, indent=1))
    return path


def _number(value: Any) -> float | None:
    return None if np.isnan(value) else round(float(value), 4)
