"""Addresses and commands are shown without their secrets, whatever form these have."""

from __future__ import annotations

import shlex

import pytest

from raymill.checkpoint.lease import this_process
from raymill.checkpoint.resume import contradictions
from raymill.config import load
from raymill.config.entry import EXIT_REFUSED, main
from raymill.errors import ConfigError
from raymill.redaction import (
    holds_secrets,
    redacted,
    redacted_names,
    redacted_value,
    secrets_of,
    typed_command,
)
from raymill.rl.reward.http import address_problems
from raymill.schema.identity import CHANGEABLE_ON_RESUME
from raymill.schema.tree import digest, flatten, to_tree
from raymill.track.registry import resolve_model


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("https://user:SECRET@host:5000/x", "https://host:5000/x"),
        ("https://user:SE/CR@ET@host/x", "https://host/x"),
        ("https://us@er:SE/CR@ET@host", "https://host"),
        ("https://user:1/SECRET@host", "https://host"),
        ("https://user:SECRET 2@host", "https://host"),
        ("https://SECRET@host/x", "https://host/x"),
        ("postgresql+psycopg2://u:SE?CR#ET@db/mlflow", "postgresql+psycopg2://db/mlflow"),
        ("s3://KEY:SECRET/+=@bucket/path", "s3://bucket/path"),
        ("http://h:1/score?token=SECRET&SECRET&to=a#key=SECRET", "http://h:1/score?token=***&***&to=***#key=***"),
        ("https://a.blob.core.windows.net/c?sv=2024&sig=SE%2FCRET%3D", "https://a.blob.core.windows.net/c?sv=***&sig=***"),
    ],
)  # fmt: skip
def test_an_address_loses_its_secrets(address: str, shown: str) -> None:
    assert redacted_value(address) == shown
    assert holds_secrets(address)
    assert not holds_secrets(shown)
    if " " not in address:
        assert redacted(f"can't reach {address} (refused)") == f"can't reach {shown} (refused)"


@pytest.mark.parametrize(
    "text",
    [
        "models:/assistant@sft", "base@1000", "https://host/path@v1", "http://h:1/#/experiments/1",
        "sqlite:////tmp/mlflow.db", "see a://b and write to x@y", "", "s3://bucket/runs",
    ],
)  # fmt: skip
def test_what_holds_no_secret_stays(text: str) -> None:
    assert redacted_value(text) == redacted(text) == text


def test_names_that_differ_in_a_secret_stay_apart() -> None:
    names = ["http://h/?k=1", "exact", "http://h/?k=2", "http://h/?k=3"]
    assert list(redacted_names(names).values()) == [
        "http://h/?k=***", "exact", "http://h/?k=*** (2)", "http://h/?k=*** (3)",
    ]  # fmt: skip


def test_words_that_must_not_be_repeated() -> None:
    assert secrets_of("https://user:SECRET/w%40rd@host/a?k=TOKEN") == {"SECRET", "w%40rd", "TOKEN"}
    assert secrets_of("https://host/a") == secrets_of("exact") == frozenset()


def rlhf(*more: str) -> tuple[str, ...]:
    return (
        "data.path=/x", "tracking.uri=https://user:SE/CRET@host", "reward.functions={exact: 1.0}",
        "reward.functions.http://h:1/a?token=SECRET=1.0", "reward.functions.http://h:1/a?token=SECRET2=0.5",
        *more,
    )  # fmt: skip


def test_a_configuration_is_written_without_secrets() -> None:
    job = load("rlhf", rlhf())
    assert job.tracking.uri == "https://user:SE/CRET@host"
    assert job.reward.functions["http://h:1/a?token=SECRET2"] == 0.5
    for tree in (to_tree(job), flatten(job)):
        assert "SE" not in str(tree)
    flat = flatten(job)
    assert flat["tracking.uri"] == "https://host"
    assert flat["reward.functions.http://h:1/a?token=***"] == 1.0
    assert flat["reward.functions.http://h:1/a?token=*** (2)"] == 0.5


def test_a_new_token_is_no_other_run_and_another_service_is() -> None:
    before = load("rlhf", rlhf())
    after = load(
        "rlhf", [text.replace("SECRET", "NEW") for text in rlhf(f"run.name={before.run.name}")]
    )
    stored = {**flatten(before), "reward.functions.http://h:1/b?token=SECRET": 1.0}
    assert not contradictions(flatten(before), flatten(after), CHANGEABLE_ON_RESUME)
    assert digest(before) != digest(after), "two services may differ in their query alone"
    [problem] = contradictions(stored, flatten(after), CHANGEABLE_ON_RESUME)
    assert problem.startswith("reward.functions.http://h:1/b?token=***=None")


def test_a_command_is_repeated_without_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["jobs/rlhf.py", *rlhf("parent=models:/a@sft")])
    command = typed_command()
    assert "SE" not in command
    assert "SE" not in this_process().command
    typed, _, remark = command.partition("  # ")
    assert remark == "passwords and tokens are left out: add them"
    assert shlex.split(typed)[:4] == [
        "python",
        "jobs/rlhf.py",
        "data.path=/x",
        "tracking.uri=https://host",
    ]
    monkeypatch.setattr("sys.argv", ["jobs/sft.py", "run.name=a b"])
    assert typed_command() == "python jobs/sft.py 'run.name=a b'"


def test_an_object_store_takes_no_secrets_from_its_address(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Clients ignore them, and would only repeat them."""
    for root in ("s3://key:SE/CRET@bucket/path", "az://container/path?sig=SECRET"):
        code = main("pretrain", lambda job: 0, [f"storage.root={root}", "experiment=tiny"])
        assert code == EXIT_REFUSED
        told = capsys.readouterr().err
        assert "1. storage.root=" in told
        assert "AWS_ACCESS_KEY_ID" in told
        assert "SE" not in told.replace("AWS_ACCESS_KEY_ID, AZURE_STORAGE_SAS_TOKEN", "")
        job = load("pretrain", ["experiment=tiny", "tracking=none"])
        with pytest.raises(ConfigError, match="credentials come from the environment") as found:
            resolve_model(root, job.tracking, job.storage.folder)
        assert "CRET" not in str(found.value)


def test_what_a_configuration_is_refused_for_is_told_without_secrets(
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = [
        "tracking.alias=https://user:SECRET@host",
        "run.name=https://h/?sig=SECRET",
        "reward.functions={http://u:SECRET@h/: [}",
    ]
    assert main("rlhf", lambda job: 0, given) == EXIT_REFUSED
    told = capsys.readouterr().err
    assert "tracking.alias" in told
    assert "SECRET" not in told


def test_an_address_that_cannot_be_read_is_not_repeated() -> None:
    assert "SE" not in " ".join(address_problems("http://user:SE/CRET@host"))
