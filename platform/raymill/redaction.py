"""Addresses and commands without what lets somebody in: passwords, tokens, signatures.

What a run writes or prints is read by more people than may use its services. User names and passwords
(`https://user:password@host`) are left out. The values of queries (`?sig=…`) are masked, whatever they are
called: nothing tells a harmless one from a token.
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterable, Sequence
from urllib.parse import unquote

MASK = "***"
_REMARK = "  # passwords and tokens are left out: add them"
_LEAST_WORD = 4
_SCHEME = r"[A-Za-z][A-Za-z0-9+.-]*://"
_ADDRESS = re.compile(rf"({_SCHEME})(\S*)")
_WHOLE = re.compile(rf"({_SCHEME})(.*)", re.DOTALL)
# A password may hold "/" and "@", which its owner should have written as %2F and %40: with a user name and a
# colon, all up to the last "@" is taken for credentials.
_CREDENTIALS = re.compile(r"(?P<user>[^/:]*):(?P<password>.*)@|(?P<token>[^/]*)@", re.DOTALL)
_QUERY_VALUE = re.compile(r"(?P<name>[?&](?:[^=&#]*=)?|#[^=&#]*=)(?P<value>[^&#]+)")


def redacted(text: str) -> str:
    """Return prose with every address in it redacted."""
    return _ADDRESS.sub(_without_secrets, text)


def redacted_value(text: str) -> str:
    """Return a configuration value redacted; one that begins as an address is an address to its end."""
    whole = _WHOLE.fullmatch(text)
    return redacted(text) if whole is None else _without_secrets(whole)


def redacted_names(names: Iterable[str]) -> dict[str, str]:
    """Map each name to itself, redacted; those that differ in a secret alone are told apart by a number."""
    shown: dict[str, str] = {}
    for name in names:
        plain = redacted_value(name)
        taken = {*shown.values()}
        numbered = (f"{plain} ({n})" for n in range(2, len(taken) + 3))
        shown[name] = plain if plain not in taken else next(n for n in numbered if n not in taken)
    return shown


def holds_secrets(address: str) -> bool:
    """Tell whether an address would be shown without a part of it."""
    return redacted_value(address) != address


def secrets_of(address: str) -> frozenset[str]:
    """Return the words of an address that must not be repeated, as typed and decoded."""
    whole = _WHOLE.fullmatch(address)
    if whole is None:
        return frozenset()
    credentials = _CREDENTIALS.match(whole[2])
    found = [match["value"] for match in _QUERY_VALUE.finditer(whole[2])]
    if credentials is not None:
        found.append(credentials["password"] or credentials["token"] or "")
    words = (word for text in found for form in (text, unquote(text)) for word in _words(form))
    return frozenset(words)


def redacted_arguments(arguments: Sequence[str]) -> list[str]:
    """Return a command line's `key=value` arguments redacted."""
    return [_redacted_argument(argument) for argument in arguments]


def typed_command() -> str:
    """Return what was typed to start this process, redacted, with a remark where something is left out."""
    shown = redacted_arguments(sys.argv)
    return shlex.join(["python", *shown]) + ("" if shown == sys.argv else _REMARK)


def with_more(command: str, more: str) -> str:
    """Return a command with something put behind its arguments, before the remark that it may end in."""
    plain, remark, _ = command.partition(_REMARK)
    return f"{plain} {more}{remark}"


def job_command(job: str, *overrides: str) -> str:
    """Spell a command that runs a job, as a shell takes it; overrides are redacted."""
    return shlex.join(["python", f"jobs/{job}.py", *redacted_arguments(overrides)])


def override(key: str, value: object) -> str:
    """Spell an override as a shell takes it, to be put behind a command."""
    return shlex.quote(_redacted_argument(f"{key}={value}"))


def _redacted_argument(argument: str) -> str:
    key, equals, value = argument.partition("=")
    if "://" in key:  # an address among a mapping's names, with the value that follows its query
        return redacted_value(argument)
    return redacted(key) + equals + redacted_value(value)


def _without_secrets(address: re.Match[str]) -> str:
    credentials = _CREDENTIALS.match(address[2])
    place = address[2][credentials.end() :] if credentials else address[2]
    return address[1] + _QUERY_VALUE.sub(rf"\g<name>{MASK}", place)


def _words(text: str) -> Iterable[str]:
    # Shorter ones hide nothing, and stand in any text.
    return (word for word in re.split(r"[\s/@:?&#=]+", text) if len(word) >= _LEAST_WORD)
