"""`jobs/generate.py`: a model continues a prompt, token by token."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from raymill.config.schema import GenerateJob
from raymill.errors import ConfigError


def run(job: GenerateJob) -> int:
    """Answer `prompt=`, `prompt_file=`, or standard input: whole when piped, line by line at a terminal.

    Raises:
        RaymillError: the model or the prompt file can't be had.
    """
    from raymill.track.registry import resolve_model

    prompt = _given_prompt(job)
    found = resolve_model(job.model, job.tracking, Path(job.storage.root))
    print(f"{found.name}", file=sys.stderr)
    model, tokenizer, end_of_text_id = load(found.folder)
    if prompt is not None:
        _answer(job, model, tokenizer, end_of_text_id, prompt, job.seed)
        return 0
    for number, line in enumerate(_typed_prompts()):
        _answer(job, model, tokenizer, end_of_text_id, line, job.seed + number)
    return 0


def _given_prompt(job: GenerateJob) -> str | None:
    """The prompt, unless a person is going to type it."""
    if job.prompt is not None:
        return job.prompt
    if job.prompt_file is not None:
        try:
            return Path(job.prompt_file).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError([f"prompt_file={job.prompt_file}: can't be read: {error}"]) from error
    return None if sys.stdin.isatty() else sys.stdin.read()


def _typed_prompts() -> Iterator[str]:
    print("type a prompt; an empty line or Ctrl-D ends", file=sys.stderr)
    while True:
        try:
            line = input("> ")
        except EOFError:
            return
        if not line:
            return
        yield line


def load(folder: Path) -> tuple[Any, Any, int | None]:
    """(model, tokenizer, end-of-text id) of a Hugging Face folder, from the disk alone."""
    import os

    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return model.to(device).eval(), tokenizer, model.config.eos_token_id


def _answer(
    job: GenerateJob, model: Any, tokenizer: Any, end_of_text_id: int | None, prompt: str, seed: int
) -> None:
    import torch

    from raymill.generate.sampling import sample

    ids = tokenizer.encode(prompt, add_special_tokens=False)
    if end_of_text_id is not None:
        ids = [end_of_text_id, *ids]  # a document begins with it, in training too
    tokens = sample(
        model,
        ids,
        max_new_tokens=job.max_new_tokens,
        temperature=job.temperature,
        top_p=job.top_p,
        generator=torch.Generator().manual_seed(seed),
        end_of_text_id=end_of_text_id,
    )
    sys.stdout.write(prompt)
    for piece in decode_stream(tokenizer, tokens):
        sys.stdout.write(piece)
        sys.stdout.flush()
    sys.stdout.write("\n")


def decode_stream(tokenizer: Any, tokens: Iterable[int]) -> Iterator[str]:
    """Text as it becomes certain: a character made of several tokens is held back until whole."""
    ids: list[int] = []
    shown = 0  # ids whose text was given out
    for token in tokens:
        ids.append(token)
        piece = tokenizer.decode(ids[shown:], skip_special_tokens=True)
        if piece and not piece.endswith("\ufffd"):
            yield piece
            shown = len(ids)
    if shown < len(ids):
        yield tokenizer.decode(ids[shown:], skip_special_tokens=True)
