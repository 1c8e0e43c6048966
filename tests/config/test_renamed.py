"""Renamed keys: typed, an old one is refused by its new name; stored, it is read, and digests stay."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from raymill.checkpoint.resume import contradictions
from raymill.config import load
from raymill.config.compose import JOBS
from raymill.errors import ConfigError
from raymill.schema.bind import known_keys
from raymill.schema.identity import CAME_LATER, CHANGEABLE_ON_RESUME, is_changeable
from raymill.schema.renamed import RENAMED, current_names, first_names
from raymill.schema.tree import digest, flatten

# What the tree before the renames composed and digested for `storage.root=/storage`.
STORED: dict[str, Any] = json.loads(
    (Path(__file__).parents[1] / "stored" / "configurations.json").read_text()
)


def today(job: str) -> Any:
    data = ["data.path=pairs.jsonl"] if job in ("reward", "dpo") else []
    return load(job, ["storage.root=/storage", *data])


@pytest.mark.parametrize("job", ["pretrain", "sft", "reward", "dpo", "rlhf"])
def test_an_old_key_is_refused_with_its_new_name(job: str) -> None:
    keys = {key for key, _ in known_keys(JOBS[job])}
    for old, new in RENAMED.items():
        assert old not in keys
        if new in keys:
            with pytest.raises(ConfigError) as refusal:
                load(job, [f"{old}=1"])
            assert f"{old}: renamed to {new}" in refusal.value.problems


def test_every_renamed_key_exists_in_some_job() -> None:
    keys = {key for job in JOBS.values() for key, _ in known_keys(job)}
    assert set(RENAMED.values()) <= keys
    assert len(set(RENAMED.values())) == len(RENAMED)


@pytest.mark.parametrize("job", STORED)
def test_a_stored_configuration_is_todays(job: str) -> None:
    stored = STORED[job]["config"]
    now = flatten(today(job))
    assert set(stored) & set(RENAMED), "it has old names"
    # What came later is no part of a run's identity, or has the value that the run behaved by.
    before = current_names(stored)
    assert before == {key: now[key] for key in before}
    later = {key for key in set(now) - set(before) if not is_changeable(key)}
    assert all(now[key] == CAME_LATER[key] for key in later)
    assert first_names({key: now[key] for key in before}) == stored
    assert contradictions(stored, now, CHANGEABLE_ON_RESUME) == []


@pytest.mark.parametrize("job", STORED)
def test_digests_are_those_of_before(job: str) -> None:
    now = today(job)
    assert now.run.name == STORED[job]["config"]["run.name"]
    assert digest(now, ignore=is_changeable) == STORED[job]["digest"]


def test_a_contradiction_names_the_key_of_today() -> None:
    stored, now = dict(STORED["rlhf"]["config"]), flatten(today("rlhf"))
    [problem] = contradictions(stored | {"algorithm.lam": 0.5}, now, CHANGEABLE_ON_RESUME)
    assert problem.startswith("algorithm.gae_lambda=1.0: the checkpoint was trained with 0.5")
    # A key that may change, may change under either name.
    moved = stored | {"rollout.dump": "elsewhere", "guard.most_in_a_row": 9}
    assert contradictions(moved, now, CHANGEABLE_ON_RESUME) == []
