"""API keys: only their sha256 is kept, so that a file of them opens nothing."""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
from collections.abc import Iterable
from pathlib import Path

from raymill.config.serve_checks import KEYS_VARIABLE
from raymill.durable import write_atomic
from raymill.errors import ConfigError
from raymill.reading import MISSING, is_file, read_text, user_path
from raymill.schema.serving import ServeConfig

_LINE = re.compile(r"(?P<name>[A-Za-z0-9._-]{1,64}) (?P<sha256>[0-9a-f]{64})")
_PREFIX = "sk-raymill-"


class ApiKeys:
    """Keys that open the service, by the sha256 of each; without any, everybody may use it."""

    def __init__(self, digests: Iterable[str]) -> None:
        self._digests = tuple(digests)

    def __bool__(self) -> bool:
        return bool(self._digests)

    def hold(self, key: str) -> bool:
        """Tell whether a key is one of these; the time it takes tells nothing about them."""
        given = _digest(key)
        # All are compared, so that the time doesn't depend on which one it is.
        return sum(hmac.compare_digest(given, known) for known in self._digests) > 0


def keys_file(settings: ServeConfig) -> Path | None:
    """Return the file of a service's keys."""
    return None if settings.keys is None else user_path(settings.keys)


def read_keys(path: Path | None) -> ApiKeys:
    """Return the keys of a file with a line `name sha256` each, and those of the environment.

    Raises:
        ConfigError: the file can't be read, or a line has another form.
    """
    digests = []
    if path is not None:
        try:
            text = read_text(path)
        except (*MISSING, UnicodeDecodeError) as error:
            raise ConfigError([f"serve.keys={path}: can't be read: {error}"]) from error
        for number, line in enumerate(text.splitlines(), 1):
            match = _LINE.fullmatch(line.strip())
            if match is not None:
                digests.append(match["sha256"])
            elif line.strip() and not line.startswith("#"):
                raise ConfigError(
                    [
                        f"serve.keys={path}: line {number} isn't a name and a sha256; new_key=name adds a key"
                    ]
                )
        if not digests:
            raise ConfigError([f"serve.keys={path}: holds no key; new_key=name adds one"])
    given = os.environ.get(KEYS_VARIABLE, "")
    digests += [_digest(key.strip()) for key in given.split(",") if key.strip()]
    return ApiKeys(digests)


def add_key(path: Path, name: str) -> str:
    """Add a new key to a file and return it; the file holds only its sha256."""
    key = _PREFIX + secrets.token_urlsafe(32)
    before = read_text(path) if is_file(path) else ""
    write_atomic(path, f"{before}{name} {_digest(key)}\n")
    return key


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()
