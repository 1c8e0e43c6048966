"""Text sampled from fixed prompts during training, kept as a file of the run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from raymill.config.schema import EvaluationConfig
from raymill.data.manifest import Prepared
from raymill.durable import write_atomic
from raymill.engine.group import WorkerGroup
from raymill.generate.sampling import sample_texts


def write_samples(
    model: Any,
    prepared: Prepared,
    settings: EvaluationConfig,
    run_dir: Path,
    *,
    seed: int,
    step: int,
    group: WorkerGroup,
) -> str:
    """Continue the prompts; all ranks take part (ZeRO-3 gathers weights), rank 0 writes.

    Returns the file's path relative to the run directory.
    """
    texts = sample_texts(
        model,
        prepared.tokenizer_folder,
        settings.prompts,
        end_of_text_id=prepared.manifest.tokenizer.end_of_text_id,
        max_new_tokens=settings.sample_tokens,
        temperature=settings.temperature,
        top_p=settings.top_p,
        seed=seed + step,
        lockstep=True,
    )
    path = f"samples/step-{step:08d}.json"
    if group.rank == 0:
        (run_dir / "samples").mkdir(exist_ok=True)
        body = [
            {"prompt": prompt, "text": text}
            for prompt, text in zip(settings.prompts, texts, strict=True)
        ]
        write_atomic(run_dir / path, json.dumps(body, ensure_ascii=False, indent=1))
    return path
