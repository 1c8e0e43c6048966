"""Redact secrets in addresses and commands: passwords, tokens, signatures.

Output of a run is read by more people than may use its services. User names and passwords
(`https://user:password@host`) are removed. Values in queries (`?sig=…`) are masked whatever their
name, because nothing distinguishes a harmless one from a token.
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterable, Sequence
from urllib.parse import unquote

MASK = "***"
_REMARK = "  # passwords and tokens are left out: add them"
_SHORTEST_SECRET = 4
_SCHEME = r"[A-Za-z][A-Za-z0-9+.-]*://"
_ADDRESS = re.compile(rf"({_SCHEME})(\S*)")
_WHOLE = re.compile(rf"({_SCHEME})(.*)", re.DOTALL)
# A password may contain "/" and "@", although these should be written as %2F and %40: after a user
# name and a colon, everything up to the last "@" is taken for credentials.
_CREDENTIALS = re.compile(r"(?P<user>[^/:]*):(?P<password>.*)@|(?P<token>[^/]*)@", re.DOTALL)
_QUERY_VALUE = re.compile(r"(?P<name>[?&](?:[^=&#]*=)?|#[^=&#]*=)(?P<value>[^&#]+)")


def redacted(text: str) -> str:
    """Redact every address in prose."""
    return _ADDRESS.sub(_without_secrets, text)


def redacted_value(text: str) -> str:
    """Redact a configuration value; one that begins as an address is an address to its end."""
    whole = _WHOLE.fullmatch(text)
    return redacted(text) if whole is None else _without_secrets(whole)


def redacted_names(names: Iterable[str]) -> dict[str, str]:
    """Map each name to its redacted form; forms that would be equal are numbered."""
    shown: dict[str, str] = {}
    for name in names:
        plain = redacted_value(name)
        taken = {*shown.values()}
        # Two names that differ only in a secret must stay distinct.
        numbered = (f"{plain} ({n})" for n in range(2, len(taken) + 3))
        shown[name] = plain if plain not in taken else next(n for n in numbered if n not in taken)
    return shown


def holds_secrets(address: str) -> bool:
    """Return whether redaction would change an address."""
    return redacted_value(address) != address


def secrets_of(address: str) -> frozenset[str]:
    """Return the words of an address that must not be repeated, as typed and decoded."""
    whole = _WHOLE.fullmatch(address)
    if whole is None:
        return frozenset()
    credentials = _CREDENTIALS.match(whole[2])
    texts = [match["value"] for match in _QUERY_VALUE.finditer(whole[2])]
    if credentials is not None:
        texts.append(credentials["password"] or credentials["token"] or "")
    words = (word for text in texts for form in (text, unquote(text)) for word in _words(form))
    return frozenset(words)


def redacted_arguments(arguments: Sequence[str]) -> list[str]:
    """Redact a command line's `key=value` arguments."""
    return [_redacted_argument(argument) for argument in arguments]


def typed_command() -> str:
    """Return the command that started this process, redacted, with a remark where something is
    missing."""
    shown = redacted_arguments(sys.argv)
    return shlex.join(["python", *shown]) + ("" if shown == sys.argv else _REMARK)


def append_arguments(command: str, arguments: str) -> str:
    """Append arguments to a command, before the remark that it may end in."""
    plain, remark, _ = command.partition(_REMARK)
    return f"{plain} {arguments}{remark}"


def job_command(job: str, *overrides: str) -> str:
    """Return the shell command that runs a job; overrides are redacted."""
    return shlex.join(["python", f"jobs/{job}.py", *redacted_arguments(overrides)])


def override(key: str, value: object) -> str:
    """Return an override as a shell takes it, to append to a command."""
    return shlex.quote(_redacted_argument(f"{key}={value}"))


def _redacted_argument(argument: str) -> str:
    key, equals, value = argument.partition("=")
    # The key may be an address, as a name of a mapping, followed by a value.
    if "://" in key:
        return redacted_value(argument)
    return redacted(key) + equals + redacted_value(value)


def _without_secrets(address: re.Match[str]) -> str:
    credentials = _CREDENTIALS.match(address[2])
    rest = address[2][credentials.end() :] if credentials else address[2]
    return address[1] + _QUERY_VALUE.sub(rf"\g<name>{MASK}", rest)


def _words(text: str) -> Iterable[str]:
    # Shorter words hide nothing, and occur in any text.
    return (word for word in re.split(r"[\s/@:?&#=]+", text) if len(word) >= _SHORTEST_SECRET)
