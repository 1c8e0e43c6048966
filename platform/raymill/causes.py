"""A failure in one line: its innermost cause, out of the errors that libraries wrap around it."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator

from raymill.errors import RaymillError

LONGEST = 500  # characters of a cause
_SILENT = "it said nothing"
# Where Ray's errors and the compiler's of torch keep the one that they wrap.
_WRAPPED = ("cause", "controller_failure", "health_check_failure", "_base_exc", "inner_exception")
# Between the errors of a printed chain, the innermost first; what was merely being handled is no cause.
_CAUSED = "The above exception was the direct cause of the following exception:"
_HANDLED = "During handling of the above exception, another exception occurred:"
_COLORS = re.compile(r"\x1b\[[0-9;]*m")
_FRAME = re.compile(r'^\s+File "[^"]*", line \d+', re.MULTILINE)
_RAISED = re.compile(r"^([A-Za-z_][\w.<>]*(?:\(\w+\))?)(?:: (.*))?$", re.DOTALL)
_SOURCE = re.compile(r"^\[[^\]]*:\d+\] ")  # the line of C++ that stands before what gloo says
_INVALID = re.compile(r"^\d+ validation errors? for (\w+)$")
# Ray's of a process that has gone, and a compiler's, wherever in the message it is.
_TELLING = re.compile(r"^The actor is dead because|:\d+(:\d+)?: (fatal )?error: ")
# What follows these in a line is the library's advice, or its stack.
_AFTERWARDS = (
    " Some common causes include",
    " There are some potential root causes",
    " Exception raised from ",
)


def cause_of(error: BaseException) -> str:
    """Say in one line what an error comes from: the name of the innermost one's class, and its message.

    An error that says no more than a word, as a missing key's, is passed over for the one around it; so is a
    command that failed, whose output is in the error around it.
    """
    chain = list(_chain(error))
    if isinstance(chain[-1], RaymillError):
        return _line(type(chain[-1]).__name__, " ".join(str(chain[-1]).split()))
    # A chain of another process arrives as text alone.
    printed = next(filter(None, (_printed(str(one)) for one in chain)), [])
    found = printed or [(type(one).__name__, _message(one)) for one in reversed(chain)]
    return _line(*next((one for one in found if " " in one[1]), found[0]))


def first_line(error: BaseException) -> str:
    """Return the first line of an error's own message, or the name of its class where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def innermost(error: BaseException) -> BaseException:
    """Return the error that the others are wrapped around; none within a RaymillError, which is written for
    the user."""
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
    cause = error.__cause__
    is_told = isinstance(error, RaymillError) or isinstance(cause, subprocess.SubprocessError)
    return None if is_told else cause


def _printed(text: str) -> list[tuple[str, str]]:
    """(class, message) of a printed traceback's errors, the innermost first; none without a traceback."""
    text = _COLORS.sub("", text)
    if not _FRAME.search(text):
        return []
    found = []
    for block in text.rpartition(_HANDLED)[2].split(_CAUSED):
        lines = block.splitlines()
        frames = [number for number, line in enumerate(lines) if _FRAME.match(line)]
        first = frames[-1] if frames else 0
        for number in range(first, len(lines)):
            raised = _RAISED.match("\n".join(lines[number:]))
            if raised and (frames or ": " in lines[number]):
                found.append((raised[1].rpartition(".")[2], _said(raised[2] or "")))
                break
    return found


def _message(error: BaseException) -> str:
    if isinstance(error, subprocess.CalledProcessError):
        output = error.stderr or error.output or ""
        text = output.decode(errors="replace") if isinstance(output, bytes) else str(output)
        return f"{error} {_said(text)}" if text.strip() else str(error)
    return _said(str(error))


def _said(text: str) -> str:
    """Return the line of a message that says what happened."""
    lines = [line.strip() for line in _COLORS.sub("", text).splitlines() if line.strip()]
    if not lines:
        return _SILENT
    said = lines[0]
    if "Last error:" in lines[:-1]:  # NCCL's own, after what torch says of it
        said = lines[lines.index("Last error:") + 1]
    elif (invalid := _INVALID.match(said)) and len(lines) > 2:  # pydantic's, by the field
        said = f"{invalid[1]}.{lines[1]}: {lines[2].partition(' [type=')[0]}"
    elif told := next(filter(_TELLING.search, lines), ""):
        said = told
    elif said.endswith(":") and len(lines) > 1:
        said = f"{said} {lines[1]}"
    for sign in _AFTERWARDS:
        said = said.partition(sign)[0]
    return _SOURCE.sub("", said)


def _line(name: str, message: str) -> str:
    text = f"{name}: {message}"
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 2]} …"
