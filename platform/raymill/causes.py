"""Reduce a failure to one line: its innermost cause, without the errors that libraries wrap around
it."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator

from raymill.errors import RaymillError

# Characters of a cause.
LONGEST = 500
_SILENT = "no message"
# Attributes in which Ray's errors and torch's compiler keep the error that they wrap.
_WRAPPED = ("cause", "controller_failure", "health_check_failure", "_base_exc", "inner_exception")
# Separators in a printed chain, innermost error first; an error that was being handled is no cause.
_CAUSED = "The above exception was the direct cause of the following exception:"
_HANDLED = "During handling of the above exception, another exception occurred:"
_COLORS = re.compile(r"\x1b\[[0-9;]*m")
_FRAME = re.compile(r'^\s+File "[^"]*", line \d+', re.MULTILINE)
_RAISED = re.compile(r"^([A-Za-z_][\w.<>]*(?:\(\w+\))?)(?:: (.*))?$", re.DOTALL)
# The C++ source line before gloo's messages.
_SOURCE = re.compile(r"^\[[^\]]*:\d+\] ")
_INVALID = re.compile(r"^\d+ validation errors? for (\w+)$")
# Ray's line about a dead process, and a compiler's error line, anywhere in a message.
_TELLING = re.compile(r"^The actor is dead because|:\d+(:\d+)?: (fatal )?error: ")
# The rest of a line after these is the library's advice, or its stack.
_AFTERWARDS = (
    " Some common causes include",
    " There are some potential root causes",
    " Exception raised from ",
)


def cause_of(error: BaseException) -> str:
    """Describe an error's cause in one line: the class and the message of the innermost error.

    An innermost error whose message is a single word, such as a missing key's, is passed over for
    the one around it; so is a failed command, whose output is in the error around it.
    """
    chain = list(_chain(error))
    # Its message is written for the user and need not be searched.
    if isinstance(chain[-1], RaymillError):
        return _line(type(chain[-1]).__name__, " ".join(str(chain[-1]).split()))
    # A chain of another process arrives only as text.
    printed = next(filter(None, (_printed(str(one)) for one in chain)), [])
    errors = printed or [(type(one).__name__, _message(one)) for one in reversed(chain)]
    return _line(*next((one for one in errors if " " in one[1]), errors[0]))


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or the name of its class if the message is
    empty."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def innermost(error: BaseException) -> BaseException:
    """Return the error that the others wrap; a RaymillError, written for the user, counts as
    innermost."""
    return list(_chain(error))[-1]


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and those within it, the innermost last."""
    seen: list[BaseException] = []
    inner: BaseException | None = error
    while inner is not None and not any(inner is one for one in seen):
        yield inner
        seen.append(inner)
        inner = _within(inner)


def _within(error: BaseException) -> BaseException | None:
    if isinstance(error, BaseExceptionGroup):
        first: BaseException = error.exceptions[0]
        return first
    for name in _WRAPPED:
        wrapped = getattr(error, name, None)
        if isinstance(wrapped, BaseException):
            return wrapped
    # `__context__` isn't followed: an error that was being handled is no cause.
    cause = error.__cause__
    is_final = isinstance(error, RaymillError) or isinstance(cause, subprocess.SubprocessError)
    return None if is_final else cause


def _printed(text: str) -> list[tuple[str, str]]:
    """Return (class, message) of each error in a printed traceback, innermost first; none without a
    traceback."""
    text = _COLORS.sub("", text)
    if not _FRAME.search(text):
        return []
    errors = []
    # Of errors that were raised while another was handled, only the last one ended the process.
    for block in text.rpartition(_HANDLED)[2].split(_CAUSED):
        lines = block.splitlines()
        frames = [number for number, line in enumerate(lines) if _FRAME.match(line)]
        first = frames[-1] if frames else 0
        for number in range(first, len(lines)):
            raised = _RAISED.match("\n".join(lines[number:]))
            if raised and (frames or ": " in lines[number]):
                errors.append((raised[1].rpartition(".")[2], _key_line(raised[2] or "")))
                break
    return errors


def _message(error: BaseException) -> str:
    if isinstance(error, subprocess.CalledProcessError):
        output = error.stderr or error.output or ""
        text = output.decode(errors="replace") if isinstance(output, bytes) else str(output)
        return f"{error} {_key_line(text)}" if text.strip() else str(error)
    return _key_line(str(error))


def _key_line(text: str) -> str:
    """Return the informative line of a message."""
    lines = [line.strip() for line in _COLORS.sub("", text).splitlines() if line.strip()]
    if not lines:
        return _SILENT
    line = lines[0]
    # NCCL's own error follows torch's description of it.
    if "Last error:" in lines[:-1]:
        line = lines[lines.index("Last error:") + 1]
    # pydantic names the field and the problem in the two lines after the first.
    elif (invalid := _INVALID.match(line)) and len(lines) > 2:
        line = f"{invalid[1]}.{lines[1]}: {lines[2].partition(' [type=')[0]}"
    elif telling := next(filter(_TELLING.search, lines), ""):
        line = telling
    elif line.endswith(":") and len(lines) > 1:
        line = f"{line} {lines[1]}"
    for sign in _AFTERWARDS:
        line = line.partition(sign)[0]
    return _SOURCE.sub("", line)


def _line(name: str, message: str) -> str:
    text = f"{name}: {message}"
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 2]} …"
