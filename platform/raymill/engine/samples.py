"""Text sampled from fixed prompts during training, kept as a file of the run."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raymill.data.store.manifest import PreparedData, read_tokenizer
from raymill.data.text.text_prompts import TextPrompts
from raymill.durable import write_atomic
from raymill.engine.agreement import on_all_ranks
from raymill.engine.compilation import uncompiled
from raymill.engine.evaluation import EvalPoint
from raymill.engine.event_log import EventLog
from raymill.engine.group import WorkerGroup
from raymill.generate.sampling import sample_texts
from raymill.schema.sections import TextEvaluation

if TYPE_CHECKING:
    from tokenizers import Tokenizer


@dataclass(frozen=True)
class SampledText:
    """Continues the prompts every `sample_every` steps and after the last; gives no figures.

    All ranks take part (ZeRO-3 gathers weights), rank 0 writes.
    """

    prepared: PreparedData
    settings: TextEvaluation
    run_dir: Path
    seed: int
    event_log: EventLog | None

    def measure(self, model: Any, group: WorkerGroup, eval_point: EvalPoint) -> dict[str, float]:
        """See `Evaluator`."""
        settings, step = self.settings, eval_point.step
        if not eval_point.due(settings.sample_every):
            return {}
        tokenizer, prompts = on_all_ranks(group, self._encoded)
        with uncompiled():
            texts = sample_texts(
                model,
                tokenizer,
                prompts,
                end_of_text_id=self.prepared.manifest.tokenizer.end_of_text_id,
                max_new_tokens=settings.sample_tokens,
                temperature=settings.temperature,
                top_p=settings.top_p,
                seed=self.seed + step,
                note=partial(self._tell, step),
                lockstep=True,
            )
        if self.event_log is not None:
            path = f"samples/step-{step:08d}.json"
            body = [
                {"prompt": prompt, "text": text}
                for prompt, text in zip(settings.prompts, texts, strict=True)
            ]
            with self.event_log.without("the sampled text", step):
                (self.run_dir / "samples").mkdir(exist_ok=True)
                write_atomic(self.run_dir / path, json.dumps(body, ensure_ascii=False, indent=1))
                self.event_log.write("samples", step, samples_path=path)
        return {}

    def _tell(self, step: int, text: str) -> None:
        if self.event_log is not None:
            self.event_log.write("message", step, text=f"evaluation.prompts: {text}")

    def _encoded(self) -> tuple[Tokenizer, list[tuple[str, list[int]]]]:
        folder = self.prepared.tokenizer_folder
        asked = TextPrompts.from_folder(folder)
        prompts = [(prompt, asked.ids(prompt)) for prompt in self.settings.prompts]
        return read_tokenizer(folder / "tokenizer.json"), prompts
