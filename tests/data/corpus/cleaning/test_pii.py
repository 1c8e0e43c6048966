"""Masking of personal data: decisions as of datatrove's PIIFormatter and Dolma's FastPiiRegex."""

from __future__ import annotations

import random
import re
import time
from ipaddress import ip_address

import pytest

from raymill.data.corpus.cleaning.pii import Pii
from raymill.data.corpus.draft import Draft

# As published: datatrove 0.10, pipeline/formatters/pii.py; dolma 1.2, taggers/pii.py.
DATATROVE_EMAIL = re.compile(
    r"\b[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+(?:\.[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+)*@(?:(?:[A-Za-z0-9](?:["
    r"A-Za-z0-9-]*[A-Za-z0-9])?\.)+[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?|\[(?:(?:25[0-5]|2[0-4][0-9]|["
    r"01]?[0-9][0-9]?)\.){3}(?:25[0-5]|2[0-4][0-9]|[01]?[0-9][0-9]?|[A-Za-z0-9-]*[A-Za-z0-9]:)])"
)
DATATROVE_IP = re.compile(
    r"(?:(?:25[0-5]|2[0-4][0-9]|[01]?[0-9][0-9]?)\.){3}(?:25[0-5]|2[0-4][0-9]|[01]?[0-9][0-9]?)"
)
DOLMA_PHONE = re.compile(r"\s+\(?(\d{3})\)?[-\. ]*(\d{3})[-. ]?(\d{4})")

EMAILS = Pii(("EMAIL",), (), (), public_ips_only=True, max_found=None)
IPS = Pii((), ("IP",), (), public_ips_only=True, max_found=None)
PHONES = Pii((), (), ("PHONE",), public_ips_only=True, max_found=None)


def masked(step: Pii, text: str) -> str:
    draft = Draft(text, "web")
    assert step.apply(draft) is None
    return draft.text


def drawn(alphabet: str, seed: int) -> str:
    draw = random.Random(seed)
    return "".join(draw.choice(alphabet) for _ in range(draw.randrange(80)))


def test_emails_equal_datatrove() -> None:
    texts = [drawn("abababa1...@@- ä", seed) for seed in range(5000)]
    references = [DATATROVE_EMAIL.sub("EMAIL", text) for text in texts]
    assert sum("EMAIL" in text for text in references) > 200
    assert [masked(EMAILS, text) for text in texts] == references


def test_public_addresses_equal_datatrove() -> None:
    def mask(match: re.Match[str]) -> str:
        try:
            return "IP" if ip_address(match[0]).is_global else match[0]
        except ValueError:
            return match[0]

    texts = [drawn("0125..8 x", seed) for seed in range(5000)]
    texts += ["8.8.8.8 10.0.0.1 127.0.0.1 192.168.1.1 203.0.113.5 172.217.0.1 256.1.1.1 1.2.3.4.5"]
    references = [DATATROVE_IP.sub(mask, text) for text in texts]
    assert sum("IP" in text for text in references) > 100
    assert [masked(IPS, text) for text in texts] == references


def test_phones_equal_dolma_but_for_the_space_before() -> None:
    def mask(match: re.Match[str]) -> str:
        return f"{match[0][: len(match[0]) - len(match[0].lstrip())]}PHONE"

    texts = [drawn("1234567890 -.()\n", seed) for seed in range(5000)]
    references = [DOLMA_PHONE.sub(mask, text) for text in texts]
    assert sum("PHONE" in text for text in references) > 200
    assert [masked(PHONES, text) for text in texts] == references


def test_masks_take_turns_and_private_addresses_may_count() -> None:
    step = Pii(("E1", "E2"), ("I",), (), public_ips_only=False, max_found=None)
    text = "a@b.c d@e.f g@h.i 10.0.0.1 010.0.0.1"
    assert masked(step, text) == "E1 E2 E1 I 010.0.0.1"


def test_documents_with_too_much_are_dropped() -> None:
    step = Pii(("E",), ("I",), ("P",), public_ips_only=True, max_found=3)
    draft = Draft("a@b.c 8.8.8.8 call (415) 555-2671", "web")
    assert step.apply(draft) is None
    assert draft.signals == {"pii.emails": 1, "pii.ips": 1, "pii.phones": 1}
    assert draft.text == "E I call P"
    assert step.apply(Draft("a@b.c c@d.e e@f.g g@h.i", "web")) == "too_many"


def test_annotation_leaves_the_text_alone() -> None:
    draft = Draft("a@b.c", "web")
    EMAILS.annotate(draft)
    assert draft.text == "a@b.c"
    assert draft.signals["pii.emails"] == 1


@pytest.mark.parametrize(
    "text",
    ["a-" * 100_000 + "@", "a" * 200_000 + "@x", "x@" + "a-" * 100_000, "@a" * 100_000,
     " 123" + "-" * 200_000, "1." * 100_000],
)  # fmt: skip
def test_hostile_text_takes_linear_time(text: str) -> None:
    started = time.process_time()
    for step in (EMAILS, IPS, PHONES):
        step.apply(Draft(text, "web"))
    assert time.process_time() - started < 5
