"""Sampled text during training, kept as files of the run, and the choice of how to sample."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from raymill.data.store.manifest import PreparedData, read_tokenizer
from raymill.data.text.text_prompts import TextPrompts
from raymill.durable import write_atomic
from raymill.engine.compilation import uncompiled
from raymill.engine.evaluation import EvalPoint
from raymill.engine.event_log import EventLog
from raymill.engine.group import WorkerGroup, on_all_ranks
from raymill.errors import ConfigError
from raymill.generate.modes import MODES, SamplingMode, mode_of, use_mode
from raymill.generate.sampling import sample_texts
from raymill.schema.sections import TextEvaluation

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class SampledText:
    """Continuations of fixed prompts, every `sample_every` steps and after the last; no metrics.

    All ranks take part, since ZeRO-3 gathers weights in each pass; rank 0 writes.
    """

    prepared: PreparedData
    settings: TextEvaluation
    run_dir: Path
    seed: int
    event_log: EventLog | None

    def measure(
        self, model: PreTrainedModel, group: WorkerGroup, eval_point: EvalPoint
    ) -> dict[str, float]:
        """See `Evaluator`."""
        settings, step = self.settings, eval_point.step
        if not eval_point.due(settings.sample_every):
            return {}
        tokenizer, prompts = on_all_ranks(group, self._encode_prompts)
        with uncompiled():
            texts = sample_texts(
                model,
                tokenizer,
                prompts,
                end_of_text_id=self.prepared.manifest.tokenizer.end_of_text_id,
                max_new_tokens=settings.sample_tokens,
                temperature=settings.temperature,
                top_p=settings.top_p,
                # Other text at every step, and the same after a resume.
                seed=self.seed + step,
                note=partial(self._log_note, step),
                lockstep=True,
            )
        if self.event_log is not None:
            path = f"samples/step-{step:08d}.json"
            body = [
                {"prompt": prompt, "text": text}
                for prompt, text in zip(settings.prompts, texts, strict=True)
            ]
            with self.event_log.optional_write("the sampled text", step):
                (self.run_dir / "samples").mkdir(exist_ok=True)
                write_atomic(self.run_dir / path, json.dumps(body, ensure_ascii=False, indent=1))
                self.event_log.write("samples", step, samples_path=path)
        return {}

    def _log_note(self, step: int, text: str) -> None:
        if self.event_log is not None:
            self.event_log.write("message", step, text=f"evaluation.prompts: {text}")

    def _encode_prompts(self) -> tuple[Tokenizer, list[tuple[str, list[int]]]]:
        folder = self.prepared.tokenizer_folder
        encoder = TextPrompts.from_folder(folder)
        prompts = [(prompt, encoder.ids(prompt)) for prompt in self.settings.prompts]
        return read_tokenizer(folder / "tokenizer.json"), prompts


def settle_sampling(
    model: PreTrainedModel, group: WorkerGroup, event_log: EventLog | None, step: int
) -> None:
    """Choose one sampling mode for all ranks before the first step; collective.

    Each rank tries which modes work for the model, and all use the slowest of their results: with different
    modes, ranks would make different numbers of passes. Where it isn't the fastest mode, the event log has the
    reason.

    Raises:
        ConfigError: on all ranks; the model can't be sampled on one of them.
    """
    mode = SamplingMode()
    problem: ConfigError | None = None
    try:
        with uncompiled():
            mode = mode_of(model)
    except ConfigError as error:
        problem = error

    def refuse() -> None:
        if problem is not None:
            raise problem

    on_all_ranks(group, refuse)
    # MODES stands in the order of speed, fastest first.
    number = MODES.index(replace(mode, why=""))
    ranks_by_mode = group.sum(*(number == other for other in range(len(MODES))))
    slowest = max(other for other, ranks in enumerate(ranks_by_mode) if ranks)
    # The reason comes from a rank that found it.
    source = group.first(number == slowest)
    assert source is not None, "some rank has the slowest mode"
    mode = group.broadcast(mode, source)
    use_mode(model, mode)
    if event_log is not None and (note := mode.note(model)) is not None:
        event_log.write("message", step, text=note)
