"""Masking of personal data: e-mail addresses, IP addresses, and telephone numbers of North America."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import ip_address
from itertools import cycle
from typing import ClassVar

from raymill.data.corpus.cleaning.step import CleaningStep, register
from raymill.data.corpus.draft import Draft

_ATOM = "[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]"
_LABEL = "[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?"
_BYTE = "(?:25[0-5]|2[0-4][0-9]|[01]?[0-9][0-9]?)"
# The expressions of datatrove, except that the part before "@" has at most 64 characters besides its dots, as
# RFC 5321 limits it: a text of a million such characters and no "@" would take hours.
_EMAIL = re.compile(
    rf"\b{_ATOM}(?:\.?{_ATOM}){{0,63}}+@"
    rf"(?:(?:{_LABEL}\.)+{_LABEL}|\[(?:{_BYTE}\.){{3}}(?:{_BYTE}|[A-Za-z0-9-]*[A-Za-z0-9]:)])"
)
_IP = re.compile(rf"(?:{_BYTE}\.){{3}}{_BYTE}")
# Part of every address, found five times as fast.
_DOTTED = re.compile(r"\d\.\d{1,3}\.\d")
# Dolma's expression; the space before a number is left alone.
_PHONE = re.compile(r"(?<=\s)\(?\d{3}\)?[-. ]*\d{3}[-. ]?\d{4}")


@register
@dataclass(frozen=True)
class Pii(CleaningStep):
    """Masks personal data, and drops documents in which there is more than `max_found` of it.

    A kind is looked for where it has masks; several masks take turns within a document.
    """

    name: ClassVar[str] = "pii"
    follows: ClassVar[str] = (
        "datatrove's PIIFormatter for e-mail and IP addresses, "
        "Dolma (Soldaini et al. 2024) for telephone numbers and the limit"
    )

    email_masks: tuple[str, ...]
    ip_masks: tuple[str, ...]
    phone_masks: tuple[str, ...]
    public_ips_only: bool
    max_found: int | None

    def apply(self, draft: Draft) -> str | None:
        text, emails, ips, phones = draft.text, 0, 0, 0
        if self.email_masks and "@" in text:
            text, emails = _masked(_EMAIL, text, self.email_masks)
        if self.ip_masks and _DOTTED.search(text):
            text, ips = _masked(_IP, text, self.ip_masks, self._is_personal)
        if self.phone_masks:
            text, phones = _masked(_PHONE, text, self.phone_masks)
        found = emails + ips + phones
        draft.signals.update({"pii.emails": emails, "pii.ips": ips, "pii.phones": phones})
        if found:
            draft.replace_text(text)
        too_many = self.max_found is not None and found > self.max_found
        return "too_many" if too_many else None

    def _is_personal(self, address: str) -> bool:
        try:
            return ip_address(address).is_global or not self.public_ips_only
        # Numbers with leading zeros are no addresses.
        except ValueError:
            return False


def _masked(
    pattern: re.Pattern[str],
    text: str,
    masks: tuple[str, ...],
    counts: Callable[[str], bool] = bool,
) -> tuple[str, int]:
    """Return the text with masks for the matches that count, and their number."""
    following = cycle(masks)
    found = 0

    def mask(match: re.Match[str]) -> str:
        nonlocal found
        if not counts(match[0]):
            return match[0]
        found += 1
        return next(following)

    return pattern.sub(mask, text), found
