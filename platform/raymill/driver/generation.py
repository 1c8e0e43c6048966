"""Generation at the terminal: a model continues a prompt, or answers in a conversation, token by token."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING

from raymill.errors import ConfigError, DataError
from raymill.generate.load import load_model, token_id_list
from raymill.reading import MISSING, read_text
from raymill.schema.jobs import GenerateJob

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from raymill.data.messages.encode import ChatEncoder


def generate(job: GenerateJob) -> int:
    """Answer `prompt=`, `prompt_file=`, or standard input: whole when piped, line by line at a terminal.

    A model whose folder has a chat template converses, unless `chat=false`; others continue text. Return the
    exit code.

    Raises:
        RaymillError: the model or the prompt file can't be read, or the model has no chat template and needs
            one.
    """
    from raymill.model.shape import is_reward_model
    from raymill.track.registry import resolve_model

    # Before the model is loaded, which takes seconds: a missing prompt file is reported at once.
    prompt = _read_prompt(job)
    resolved = resolve_model(job.model, job.tracking, job.storage.folder)
    if is_reward_model(resolved.folder):
        raise ConfigError(
            [f"model={job.model}: {resolved.name} is a reward model and writes nothing"]
        )
    encoder = _chat_encoder(job, resolved.folder)
    # On stderr, so that stdout holds the generated text alone.
    print(f"{resolved.name}", file=sys.stderr)
    model, tokenizer, end_of_text_id = load_model(resolved.folder)
    if encoder is not None:
        _converse(job, model, tokenizer, encoder, prompt)
    elif prompt is not None:
        _answer(job, model, tokenizer, end_of_text_id, prompt, job.seed)
    else:
        for number, line in enumerate(_typed_prompts()):
            _answer(job, model, tokenizer, end_of_text_id, line, job.seed + number)
    return 0


def _chat_encoder(job: GenerateJob, folder: Path) -> ChatEncoder | None:
    """Return the encoder of the model's chat template; None: it continues text."""
    if job.chat is False:
        return None
    from raymill.data.messages.folder import load_chat_encoder

    try:
        encoder = load_chat_encoder(folder)
    except DataError as error:
        raise DataError(f"{error} (chat=false continues text, without the template.)") from error
    settings = {"chat=true": job.chat, "system": job.system is not None}
    if encoder is None and any(settings.values()):
        raise ConfigError(
            [
                f"{key}: {job.model} has no chat template (chat_template.jinja, or chat_template in "
                "tokenizer_config.json, in its folder), so it can only continue text; choose a "
                f"fine-tuned model, or leave {key} out"
                for key, is_set in settings.items()
                if is_set
            ]
        )
    return encoder


def _converse(
    job: GenerateJob,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    encoder: ChatEncoder,
    prompt: str | None,
) -> None:
    from raymill.generate.conversation import ChatSession, converse, print_answer

    conversation = ChatSession(
        model,
        tokenizer,
        encoder,
        system=job.system,
        max_new_tokens=job.max_new_tokens,
        temperature=job.temperature,
        top_p=job.top_p,
        stop_ids=token_id_list(model.generation_config.eos_token_id),
    )
    if prompt is None:
        converse(conversation, job.seed)
        return
    # Piped text ends in a newline, by `echo` or an editor, that isn't part of the message.
    message = prompt if job.prompt is not None else prompt.removesuffix("\n")
    print_answer(conversation, message, job.seed)


def _read_prompt(job: GenerateJob) -> str | None:
    """Return the prompt; None where the user types it at a terminal."""
    if job.prompt is not None:
        return job.prompt
    if job.prompt_file is not None:
        try:
            return read_text(Path(job.prompt_file))
        except (*MISSING, UnicodeDecodeError) as error:
            raise ConfigError([f"prompt_file={job.prompt_file}: can't be read: {error}"]) from error
    return None if sys.stdin.isatty() else sys.stdin.read().removeprefix("\ufeff")


def _typed_prompts() -> Iterator[str]:
    """Yield the lines that the user types, until an empty one."""
    print("type a prompt; an empty line or Ctrl-D ends", file=sys.stderr)
    while True:
        try:
            line = input("> ")
        except EOFError:
            return
        if not line:
            return
        yield line


def _answer(
    job: GenerateJob,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    end_of_text_id: int | None,
    prompt: str,
    seed: int,
) -> None:
    from raymill.generate.conversation import print_note
    from raymill.generate.decoding import decode_stream
    from raymill.generate.load import text_prompts
    from raymill.generate.sampling import dropped_tokens, sample
    from raymill.model.shape import context_length

    ids = text_prompts(tokenizer).ids(prompt)
    if left_out := dropped_tokens(model, ids):
        print_note(
            f"the model has {context_length(model.config)} positions: it doesn't see the first "
            f"{left_out} of the prompt's {len(ids)} tokens"
        )
    tokens = sample(
        model,
        ids,
        max_new_tokens=job.max_new_tokens,
        temperature=job.temperature,
        top_p=job.top_p,
        seed=seed,
        end_of_text_id=end_of_text_id,
    )
    sys.stdout.write(prompt)
    stops = frozenset(token_id_list(model.generation_config.eos_token_id))
    drawn = takewhile(lambda token: token not in stops, tokens)
    # Token by token: a character may need several tokens, which the decoder waits for.
    for piece in decode_stream(tokenizer, drawn, after=ids):
        sys.stdout.write(piece)
        sys.stdout.flush()
    sys.stdout.write("\n")
