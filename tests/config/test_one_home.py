"""A default has one home: a file of `conf/`, which states only what differs from the files it includes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest

from raymill.config.compose import JOBS, choices, groups
from raymill.config.defaults import CONF, SHARED, statements
from raymill.config.topics import TOPICS
from raymill.schema.bind import field_types
from raymill.schema.jobs import PipelineJob

# Of these, conf/ has no file for every choice: only Muon has momentum.
WITH_DEFAULT = {"OptimConfig.momentum"}


def sections(cls: Any) -> Iterator[Any]:
    """Yield a configuration dataclass and all that it consists of."""
    yield cls
    for hint in field_types(cls).values():
        if dataclasses.is_dataclass(hint):
            yield from sections(hint)


def chains(job: str) -> Iterator[dict[str, str]]:
    """Yield the choices of groups to compose a job with: its own, and each group's others one at a time."""
    yield {}
    defaults = statements(job)
    for group in groups():
        if group != "experiment" and any(key.startswith(f"{group}.") for key in defaults):
            yield from ({group: choice} for choice in choices(group, job))


def test_a_section_has_no_default_of_its_own() -> None:
    with_default = {
        f"{section.__name__}.{field.name}"
        for job in (*JOBS.values(), PipelineJob)
        for section in sections(job)
        for field in dataclasses.fields(section)
        if field.default is not dataclasses.MISSING
        or field.default_factory is not dataclasses.MISSING
    }
    assert with_default == WITH_DEFAULT


@pytest.mark.parametrize("job", JOBS)
def test_a_file_states_only_what_differs_from_what_it_includes(job: str) -> None:
    for chosen in chains(job):
        for key, stated in statements(job, chosen).items():
            for before, after in pairwise(stated):
                assert after.value != before.value, (chosen, key, before.file, after.file)


@pytest.mark.parametrize("job", JOBS)
def test_every_key_is_stated_and_what_is_stated_is_a_key(job: str) -> None:
    keys = {
        f"{prefix}{key}"
        for prefix, cls in prefixed(JOBS[job])
        for key, hint in field_types(cls).items()
        if not dataclasses.is_dataclass(hint)
    }
    stated = set(statements(job, {"optim": "muon"}))
    assert stated == keys


def prefixed(cls: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    yield prefix, cls
    for key, hint in field_types(cls).items():
        if dataclasses.is_dataclass(hint):
            yield from prefixed(hint, f"{prefix}{key}.")


@pytest.mark.parametrize("topic", sorted(TOPICS))
def test_help_explains_keys_by_the_comments_of_conf(topic: str) -> None:
    explained = statements("pretrain" if topic == "pipeline" else topic)
    for key in TOPICS[topic].keys:
        assert any(stated.comment for stated in explained[key]), key


def test_shared_files_are_used_and_cannot_be_chosen() -> None:
    used = {
        stated.file
        for job in JOBS
        for chosen in chains(job)
        for key in statements(job, chosen).values()
        for stated in key
    }
    assert {f"{SHARED}/{path.name}" for path in (CONF / SHARED).iterdir()} <= used
    assert SHARED not in groups()
