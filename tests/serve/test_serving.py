"""`jobs/serve.py`: what it refuses at its start, names of models, lineage, and the server's process."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from generate.chat_factory import write_chat_folder
from raymill.config import load
from raymill.config.entry import main
from raymill.driver.serving import serve
from raymill.errors import ConfigError, DataError
from raymill.serve import opening
from raymill.serve.keys import read_keys
from raymill.serve.opening import model_names
from raymill.track.marker import MARKER_NAME, verified_digest, weights_digest, write_marker

LINEAGE = {"parent": None, "data_digests": ["d" * 64], "code_commit": "abc", "checkpoint": "step-1"}


@pytest.fixture
def export(tmp_path: Path) -> Path:
    folder = write_chat_folder(tmp_path / "runs" / "demo" / "export")
    write_marker(folder, LINEAGE)
    return folder


def job(*overrides: str) -> Any:
    return load("serve", ["port=0", *overrides])


@pytest.mark.parametrize("what", ["changed", "truncated", "missing"])
def test_a_damaged_folder_is_refused_in_a_sentence(export: Path, what: str) -> None:
    weights = export / "model.safetensors"
    content = bytearray(weights.read_bytes())
    if what == "missing":
        (export / "tokenizer.json").unlink()
        named = "tokenizer.json is missing"
    else:
        content[-1] ^= 1
        weights.write_bytes(content if what == "changed" else content[:-100])
        named = "model.safetensors is changed since the export"
    with pytest.raises(DataError, match=named):
        serve(job(f"model={export}", f"storage.root={export.parent}"))
    # Without a marker, a folder may hold anything that loads.
    assert weights_digest(export)


def test_a_whole_folder_has_the_digest_of_its_weights(export: Path) -> None:
    digest = verified_digest(export)
    assert digest == weights_digest(export)
    (export / MARKER_NAME).unlink()
    assert verified_digest(export) == digest


@pytest.mark.parametrize("dry_run", [True, False])
def test_a_model_that_does_not_fit_is_refused_in_numbers(
    export: Path, monkeypatch: pytest.MonkeyPatch, dry_run: bool
) -> None:
    monkeypatch.setattr(opening, "free_bytes", lambda: 2**20)
    with pytest.raises(ConfigError, match=r"model=demo: not even one answer fits .* of 0\.8 MiB"):
        serve(job(f"model={export}", f"storage.root={export.parent}", f"dry_run={dry_run}"))


def test_a_dry_run_says_what_fits(export: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = job(f"model={export}", f"storage.root={export.parent}", "serve.slots=3", "dry_run=true")
    assert serve(asked) == 0
    head, demo = capsys.readouterr().out.splitlines()[-2:]
    assert head.startswith("model") and demo.startswith("demo")
    cells = re.split(r"  +", demo)
    assert cells[5] == "3" and len(cells) == len(re.split(r"  +", head))


@pytest.mark.parametrize("dry_run", [True, False])
def test_a_reward_model_is_refused(export: Path, dry_run: bool) -> None:
    config = json.loads((export / "config.json").read_text())
    config["architectures"] = ["LlamaForSequenceClassification"]
    (export / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="is a reward model and writes nothing"):
        serve(job(f"model={export}", f"storage.root={export.parent}", f"dry_run={dry_run}"))


def test_models_are_named_by_their_reference_or_run() -> None:
    references = [
        "models:/assistant@aligned",
        "models:/assistant/3",
        "storage/runs/demo/export",
        "/m/llama/",
    ]
    assert model_names(references) == ["assistant@aligned", "assistant/3", "demo", "llama"]
    with pytest.raises(ConfigError, match="two models would be served as 'demo'"):
        model_names(["a/demo/export", "b/demo/export"])


def test_a_new_key_is_printed_once_and_opens(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "keys.txt"
    for name in ("laptop", "phone"):
        assert main("serve", lambda job: serve(job), [f"serve.keys={path}", f"new_key={name}"]) == 0
    printed = capsys.readouterr().out.split()
    keys = read_keys(path)
    assert len(printed) == 2 and all(keys.hold(key) for key in printed) and not keys.hold("x")
    assert not any(key in path.read_text() for key in printed)
    assert [line.split()[0] for line in path.read_text().splitlines()] == ["laptop", "phone"]


def test_keys_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not read_keys(None)
    monkeypatch.setenv("RAYMILL_API_KEYS", "one, two")
    keys = read_keys(None)
    assert keys and keys.hold("one") and keys.hold("two") and not keys.hold("one, two")
    assert load("serve", ["host=0.0.0.0"]).host == "0.0.0.0"


@pytest.mark.parametrize(
    ("text", "named"),
    [("", "holds no key"), ("ada\n", "line 1"), ("# x\n\nada " + "g" * 64, "line 3")],
)
def test_files_of_keys_that_hold_something_else(tmp_path: Path, text: str, named: str) -> None:
    path = tmp_path / "keys.txt"
    path.write_text(text)
    with pytest.raises(ConfigError, match=named):
        read_keys(path)
    with pytest.raises(ConfigError, match="can't be read"):
        read_keys(tmp_path / "none")


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["host=0.0.0.0"], "everybody who reaches this machine"),
        (["serve.cors=*"], "every site could use the model"),
        (["serve.cors=chat.example.org"], "expected an origin"),
        (["new_key=a"], "needs serve.keys"),
        (["new_key=a b", "serve.keys=k"], "allowed are letters"),
        (["model=[]"], "name at least one"),
        (["model=[a,b]", "adapters.x=c"], "they belong to one model"),
        (["serve.slots=0"], "serve.slots=0: must be at least 1"),
        (["serve.request_s=0"], "must be above 0"),
        (["port=65536"], "must be from 0 to 65535"),
    ],
)
def test_configurations_that_are_refused(overrides: list[str], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        load("serve", overrides)
