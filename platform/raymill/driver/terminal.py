"""A conversation at a terminal: lines are questions or commands, and answers are streamed."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing, suppress
from typing import Protocol

from raymill.durable import write_atomic
from raymill.errors import DataError, RaymillError
from raymill.reading import user_path

HELP = (
    "type a message; /reset starts over, /undo takes the last answer back, /history shows what was said, "
    "/save FILE keeps it, /help shows this; an empty line or Ctrl-D ends; Ctrl-C stops an answer"
)
_COMMAND = re.compile(r"/([A-Za-z]+)(?:\s+(.*))?")


class Dialogue(Protocol):
    """Conversation with a model, in this process or behind an address."""

    @property
    def messages(self) -> list[dict[str, str]]:
        """All messages so far."""
        ...

    @property
    def seeds(self) -> list[int]:
        """The seed of each answer."""
        ...

    def ask(self, text: str, seed: int) -> Generator[str]:
        """Yield the pieces of an answer; closed early, the answer ends there and is remembered."""
        ...

    def reset(self) -> None:
        """Forget everything but the system message."""
        ...

    def undo(self) -> None:
        """Take back the last question and its answer; DataError if there is none."""
        ...


def print_answer(conversation: Dialogue, text: str, seed: int) -> None:
    """Stream an answer, and nothing else, to standard output."""
    with closing(conversation.ask(text, seed)) as pieces:
        for piece in pieces:
            sys.stdout.write(piece)
            sys.stdout.flush()
    sys.stdout.write("\n")


def converse(conversation: Dialogue, seed: int, about: Callable[[], Mapping[str, object]]) -> None:
    """Converse with a user at a terminal; answer i draws with `seed` + i.

    `about` returns what `/save` tells of the model and its settings.
    """
    # The arrow keys then return earlier lines.
    with suppress(ImportError):
        import readline  # noqa: F401
    print(HELP, file=sys.stderr)
    asked = 0
    while True:
        try:
            line = input("you> ")
        except EOFError:
            print()
            return
        if not line.strip():
            return
        try:
            if command := _COMMAND.fullmatch(line.strip()):
                _obey(conversation, command[1], command[2] or "", about)
                continue
            asked += 1
            print_answer(conversation, line, seed + asked - 1)
        except KeyboardInterrupt:
            sys.stdout.write("\n")
        except RaymillError as error:
            print(f"error: {error}", file=sys.stderr)


def _obey(
    conversation: Dialogue,
    command: str,
    argument: str,
    about: Callable[[], Mapping[str, object]],
) -> None:
    """Carry out a command.

    Raises:
        DataError: there is no such command, or it can't be carried out.
    """
    if command == "reset":
        conversation.reset()
    elif command == "undo":
        conversation.undo()
    elif command == "history":
        for message in conversation.messages:
            print(f"{message['role']}> {message['content']}", file=sys.stderr)
    elif command == "save":
        _save(conversation, argument, about())
    elif command == "help":
        print(HELP, file=sys.stderr)
    else:
        raise DataError(
            f"There is no command /{command}; {HELP}. A space before / makes it a message."
        )


def _save(conversation: Dialogue, file: str, about: Mapping[str, object]) -> None:
    if not file:
        raise DataError("/save needs the name of a file, as in /save talk.json.")
    path = user_path(file)
    saved = {**about, "seeds": conversation.seeds, "messages": conversation.messages}
    try:
        write_atomic(path, json.dumps(saved, indent=1, ensure_ascii=False) + "\n")
    except OSError as error:
        raise DataError(f"{path} can't be written: {error.strerror}.") from error
    print(f"saved to {path}", file=sys.stderr)


def typed_prompts() -> Iterator[str]:
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


def print_text(prompt: str, pieces: Iterator[str]) -> None:
    """Print a prompt and stream its continuation behind it."""
    sys.stdout.write(prompt)
    for piece in pieces:
        sys.stdout.write(piece)
        sys.stdout.flush()
    sys.stdout.write("\n")
