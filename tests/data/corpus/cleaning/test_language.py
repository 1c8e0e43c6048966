"""Languages: identified, declared, unknown, and kept or not."""

from __future__ import annotations

import pytest

from raymill.data.corpus.cleaning.language import UNKNOWN, Language
from raymill.data.corpus.draft import Draft
from raymill.errors import DataError

TEXTS = {
    "en": "The administrator must remember to update the system before any new package is installed.",
    "de": "Der Administrator muss daran denken, das System zu aktualisieren, bevor er neue Pakete installiert.",
    "fr": "L'administrateur doit penser à mettre à jour le système avant d'installer un nouveau paquet.",
    "ru": "Администратор должен помнить о том, что перед установкой пакета систему надо обновить.",
    "ja": "管理者は新しいパッケージをインストールする前に、システムを更新しなければなりません。",
}


@pytest.mark.parametrize("code", TEXTS)
def test_languages_are_identified_and_kept_or_dropped(code: str) -> None:
    draft = Draft(TEXTS[code], "web")
    reason = Language(("en", "ja"), 0.3, {}, 1000).apply(draft)
    assert draft.language == code
    assert reason == (None if code in ("en", "ja") else "other")
    assert 0.3 <= draft.signals["language.probability"] <= 1


def test_all_are_kept_without_a_list() -> None:
    assert [Language((), 0.3, {}, 1000).apply(Draft(text, "web")) for text in TEXTS.values()] == [
        None
    ] * 5


def test_an_unlikely_language_is_unknown() -> None:
    for keep, reason in ((("en",), "unknown"), (("en", UNKNOWN), None)):
        draft = Draft("1234 5678 --- 90", "web")
        assert Language(keep, 0.65, {}, 1000).apply(draft) == reason
        assert draft.language == UNKNOWN


def test_a_declared_language_is_believed() -> None:
    draft = Draft(TEXTS["de"], "books")
    assert Language(("la",), 0.65, {"books": "la"}, 1000).apply(draft) is None
    assert draft.language == "la"
    assert draft.signals == {}


def test_a_language_that_is_never_identified_is_refused() -> None:
    with pytest.raises(
        DataError, match=r"can't keep 'english', which is never identified; .* en, "
    ):
        Language(("english",), 0.3, {}, 1000).apply(Draft(TEXTS["en"], "web"))


def test_long_documents_are_sampled_at_three_places() -> None:
    # A license in English around a book in French.
    text = "\n".join([TEXTS["en"] * 3, TEXTS["fr"] * 200, TEXTS["en"] * 3])
    draft = Draft(text, "web")
    Language((), 0.0, {}, 3000).apply(draft)
    assert draft.language == "fr"
