"""Presets of the steps that use lists and models: their order, their published values, their refusals."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from raymill.config import load
from raymill.config.defaults import CONF
from raymill.data.corpus.cleaning.declared import declared_steps
from raymill.errors import ConfigError

OWN_DATA = ("data=files", "data.path=texts/")


def cleaning(*overrides: str) -> dict[str, dict[str, Any]]:
    entries: dict[str, dict[str, Any]] = load("prepare", [*OWN_DATA, *overrides]).data.cleaning
    return entries


def test_fineweb_is_its_published_pipeline() -> None:
    steps = cleaning("data/cleaning=[urls,english,fineweb,pii]")
    order = ["urls", "language", "gopher_repetition", "gopher_quality", "c4", "fineweb", "pii"]
    assert [*steps] == order
    assert steps["language"] | {"characters": 0} == {
        "keep": ["en"], "min_probability": 0.65, "declared": {}, "characters": 0,
    }  # fmt: skip
    assert steps["pii"]["email_masks"] == ["email@example.com", "firstname.lastname@example.org"]
    assert steps["pii"]["phone_masks"] == []


def test_fineweb2_identifies_languages_first() -> None:
    steps = cleaning("data/cleaning=[languages,fineweb2,repair,pii]")
    assert next(iter(steps)) == "language"
    assert [*steps][-2:] == ["repair", "pii"]
    assert steps["language"]["keep"] == []


def test_dolma_takes_one_rule_of_c4_and_drops_documents_with_much_personal_data() -> None:
    steps = cleaning("data/cleaning=dolma")
    order = ["language", "gopher_repetition", "gopher_quality", "c4", "pii"]
    assert [*steps] == order
    assert steps["language"]["min_probability"] == 0.5
    in_force = {name for name, value in steps["c4"].items() if value not in (None, False, [])}
    assert in_force == {"terminal_punctuation"}
    assert steps["pii"]["max_found"] == 5
    assert steps["pii"]["phone_masks"] == ["|||PHONE_NUMBER|||"]


def test_dclm_needs_a_classifier() -> None:
    with pytest.raises(ConfigError, match=r"data\.cleaning\.quality\.model: a value is required"):
        cleaning("data/cleaning=dclm")
    steps = cleaning("data/cleaning=dclm", "data.cleaning.quality.model=m.safetensors")
    assert [*steps][:2] == ["urls", "language"]
    assert [*steps][-2:] == ["refinedweb_lines", "quality"]
    assert steps["quality"] == {
        "head": 0.1, "tail": 0.0, "keep": ["head"], "model": "m.safetensors",
    }  # fmt: skip
    assert "quality" not in cleaning("data/cleaning=dclm", "~data.cleaning.quality")


@pytest.mark.parametrize(
    "preset", ["urls", "english", "languages", "pii", "repair", "normalize", "dolma"]
)
def test_every_preset_makes_its_steps(preset: str) -> None:
    problems: list[str] = []
    steps = declared_steps(cleaning(f"data/cleaning={preset}"), problems)
    assert problems == []
    assert steps


def test_languages_of_presets_are_text() -> None:
    """YAML reads the code of Norwegian as false where it isn't quoted."""
    for path in (CONF / "data" / "cleaning").glob("*.yaml"):
        for entry in (yaml.safe_load(path.read_text()) or {}).values():
            languages = entry.get("languages", {}) if isinstance(entry, dict) else {}
            assert all(isinstance(code, str) for code in languages), path.name


def test_lists_are_named_on_the_command_line() -> None:
    entry = cleaning("data/cleaning=urls", "data.cleaning.urls.domains=[a.txt,b.gz]")["urls"]
    assert entry["domains"] == ["a.txt", "b.gz"]
    with pytest.raises(ConfigError, match=r"data\.cleaning\.pii\.max_found='five'"):
        cleaning("data/cleaning=pii", "data.cleaning.pii.max_found=five")
