"""Weights of a mixture over a run: what the configuration says, and what it may not say."""

from __future__ import annotations

import pytest

from raymill.config import load
from raymill.data.store.mixture import Change
from raymill.errors import ConfigError
from raymill.plan.mixture import change_step, max_epochs, mixture_changes
from raymill.schema.data_sections import RowsConfig

MIXTURE = "data.mixture={wiki: 3, code: 1}"


def data_of(*overrides: str) -> RowsConfig:
    return load("pretrain", [MIXTURE, "storage.root=/nowhere", *overrides]).data


def test_changes_are_counted_in_samples_and_sorted() -> None:
    data = data_of("data.mixture_changes={90%: {code: 1}, 12: {wiki: 1, code: 2}}")
    assert mixture_changes(data, 101, 8) == (
        Change(12 * 8, (1.0, 2.0)),
        Change(91 * 8, (0.0, 1.0)),
    )
    assert mixture_changes(data_of(), 101, 8) == ()


def test_a_share_is_rounded_up_to_whole_steps() -> None:
    assert [change_step(point, 1000) for point in ("90%", "0.01%", "33.35%", "7")] == [
        900,
        1,
        334,
        7,
    ]


def test_epochs_stand_in_the_order_of_the_mixture() -> None:
    assert max_epochs(data_of("data.max_epochs={code: 4}")) == (None, 4.0)
    assert max_epochs(load("pretrain", ["storage.root=/nowhere"]).data) == (None,)


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("data.mixture_changes={half: {wiki: 1}}", r"\[half\]: expected the step after which"),
        ("data.mixture_changes={100%: {wiki: 1}}", r"\[100%\]: expected the step after which"),
        ("data.mixture_changes={0: {wiki: 1}}", r"\[0\]: expected the step after which"),
        ("data.mixture_changes={5: {wiki: 0}}", r"\[5\]: gives no source a weight"),
        ("data.mixture_changes={5: {wiki: -1, code: 1}}", r"\[5\]\[wiki\]=-1.0: must be a number"),
        ("data.mixture_changes={5: {books: 1}}", r"\[books\]: isn't a prepared folder .* has wiki, code"),
        ("data.mixture_changes={5: 1}", r"expected a mapping such as \{name: \{name: 0.5\}\}"),
        ("data.max_epochs={books: 1}", r"max_epochs\[books\]: isn't a prepared folder"),
        ("data.max_epochs={wiki: 0}", r"max_epochs\[wiki\]=0.0: must be above 0"),
        ("data.mixture={wiki: 1, code: 0}", r"mixture\[code\]: its weight is 0 at all times"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(override: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        data_of(override)


def test_a_source_may_begin_later() -> None:
    data = data_of("data.mixture={wiki: 1, code: 0}", "data.mixture_changes={50%: {code: 1}}")
    assert mixture_changes(data, 10, 4) == (Change(20, (0.0, 1.0)),)
