"""Chat at the terminal: a model converses, or continues a prompt, in this process or behind an address."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING

from raymill.driver.terminal import (
    Dialogue,
    converse,
    print_answer,
    print_text,
    typed_prompts,
)
from raymill.errors import ConfigError, DataError
from raymill.reading import MISSING, read_text
from raymill.schema.chat import ChatJob

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from raymill.data.messages.encode import ChatEncoder
    from raymill.driver.remote_chat import RemoteModel

About = Callable[[], Mapping[str, object]]


def chat(job: ChatJob) -> int:
    """Answer `prompt=`, `prompt_file=`, or standard input: whole when piped, line by line at a terminal.

    A model whose folder has a chat template converses, and so does one behind `url=`, unless `chat=false`;
    others continue text. Return the exit code.

    Raises:
        RaymillError: the model or the prompt file can't be read, the model has no chat template and needs one,
            or the server refuses.
    """
    # Before the model is loaded, which takes seconds: a missing prompt file is reported at once.
    prompt = _read_prompt(job)
    if job.url is not None:
        _chat_with_server(job, prompt)
    else:
        _chat_here(job, prompt)
    return 0


def _chat_with_server(job: ChatJob, prompt: str | None) -> None:
    from raymill.driver.remote_chat import RemoteModel, RemoteSession

    model = RemoteModel(job)
    print(model.name, file=sys.stderr)
    if job.chat is False:
        _continue(job, model.continue_text, prompt)
        return
    _converse(job, RemoteSession(model, job.system), _about_server(job, model), prompt)


def _about_server(job: ChatJob, model: RemoteModel) -> About:
    return lambda: {"model": model.answered, **_settings(job)}


def _chat_here(job: ChatJob, prompt: str | None) -> None:
    from raymill.generate.build import build_engine
    from raymill.generate.conversation import ChatSession
    from raymill.generate.engine.request import SamplingParameters
    from raymill.generate.load import load_model, token_id_list
    from raymill.model.shape import is_reward_model
    from raymill.track.registry import resolve_model

    resolved = resolve_model(job.model, job.tracking, job.storage.folder)
    if is_reward_model(resolved.folder):
        raise ConfigError(
            [f"model={job.model}: {resolved.name} is a reward model and writes nothing"]
        )
    encoder = _chat_encoder(job, resolved.folder)
    # On stderr, so that stdout holds the generated text alone.
    print(f"{resolved.name}", file=sys.stderr)
    model, tokenizer, end_of_text_id = load_model(resolved.folder)
    if encoder is None:
        writer = TextWriter(model, tokenizer, end_of_text_id, job)
        _continue(job, writer.continue_text, prompt)
        return
    parameters = SamplingParameters(
        max_new_tokens=job.max_new_tokens,
        temperature=job.temperature,
        top_p=job.top_p,
        stop_ids=frozenset(token_id_list(model.generation_config.eos_token_id)),
    )
    engine = build_engine(model, slots=1)
    session = ChatSession(engine, tokenizer, encoder, parameters, system=job.system)
    _converse(job, session, lambda: {"model": resolved.name, **_settings(job)}, prompt)


def _settings(job: ChatJob) -> dict[str, object]:
    """Return what decides the answers besides the model and the seeds."""
    return {
        "max_new_tokens": job.max_new_tokens,
        "temperature": job.temperature,
        "top_p": job.top_p,
    }


def _chat_encoder(job: ChatJob, folder: Path) -> ChatEncoder | None:
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


def _converse(job: ChatJob, conversation: Dialogue, about: About, prompt: str | None) -> None:
    if prompt is None:
        converse(conversation, job.seed, about)
        return
    # Piped text ends in a newline, by `echo` or an editor, that isn't part of the message.
    message = prompt if job.prompt is not None else prompt.removesuffix("\n")
    print_answer(conversation, message, job.seed)


def _continue(
    job: ChatJob, continue_text: Callable[[str, int], Iterator[str]], prompt: str | None
) -> None:
    """Continue a prompt, or those that the user types."""
    for number, text in enumerate(typed_prompts() if prompt is None else [prompt]):
        print_text(text, continue_text(text, job.seed + number))


def _read_prompt(job: ChatJob) -> str | None:
    """Return the prompt; None where the user types it at a terminal."""
    if job.prompt is not None:
        return job.prompt
    if job.prompt_file is not None:
        try:
            return read_text(Path(job.prompt_file))
        except (*MISSING, UnicodeDecodeError) as error:
            raise ConfigError([f"prompt_file={job.prompt_file}: can't be read: {error}"]) from error
    return None if sys.stdin.isatty() else sys.stdin.read().removeprefix("\ufeff")


@dataclass(frozen=True)
class TextWriter:
    """Model that continues text, as the job says."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    end_of_text_id: int | None
    job: ChatJob

    def continue_text(self, prompt: str, seed: int) -> Iterator[str]:
        """Return the pieces of a text behind a prompt, up to a stop token."""
        from raymill.generate.conversation import print_note
        from raymill.generate.decoding import decode_stream
        from raymill.generate.load import text_prompts, token_id_list
        from raymill.generate.sampling import dropped_tokens, sample
        from raymill.model.shape import context_length

        ids = text_prompts(self.tokenizer).ids(prompt)
        if left_out := dropped_tokens(self.model, ids):
            print_note(
                f"the model has {context_length(self.model.config)} positions: it doesn't see the first "
                f"{left_out} of the prompt's {len(ids)} tokens"
            )
        tokens = sample(
            self.model,
            ids,
            max_new_tokens=self.job.max_new_tokens,
            temperature=self.job.temperature,
            top_p=self.job.top_p,
            seed=seed,
            end_of_text_id=self.end_of_text_id,
        )
        stops = frozenset(token_id_list(self.model.generation_config.eos_token_id))
        drawn = takewhile(lambda token: token not in stops, tokens)
        # Token by token: a character may need several tokens, which the decoder waits for.
        return decode_stream(self.tokenizer, drawn, after=ids)
