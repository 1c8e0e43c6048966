"""Data and runs stored before keys were renamed: found under the same names, resumed to equal losses."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest
import torch

from driver import job

pytestmark = pytest.mark.integration
# Made by the tree before: two prepared folders, and a run of 8 steps as it was after its checkpoint of step 4.
STORED = Path(__file__).parents[1] / "stored"
DATA = (
    "data=files", "data.path=texts", "data.sequence_length=16", "data.row_group_rows=8",
    "data.validation.fraction=0.3", "data.shard_input_bytes=4096", "tokenizer.vocab_size=260",
    "storage.root=storage",
)  # fmt: skip
RUN = (
    "arch.hidden_size=8", "arch.layers=1", "arch.heads=2", "arch.kv_heads=1", "arch.intermediate_size=8",
    "arch.max_positions=32", "schedule=constant", "schedule.warmup_steps=2", "optim.learning_rate=1e-2",
    "train.steps=8", "train.global_batch=4", "train.micro_batch=2", "train.threads=1", "evaluation.every=0",
    "evaluation.prompts=[The]", "evaluation.sample_tokens=2", "checkpoint.every=4", "checkpoint.keep_every=4",
    "tracking=none", "run.name=stored",
)  # fmt: skip
CHAT = (
    "kind=chat", "parent=parent", "data.path=chats.jsonl", "data.sequence_length=64", "data.row_group_rows=8",
    "data.validation.fraction=0.3", "data.shard_input_bytes=4096", "data.questions=2", "tracking=none",
    "storage.root=storage",
)  # fmt: skip


@pytest.fixture
def root(tmp_path: Path) -> Path:
    # A file that is given by itself is known by its folder's name too, so the folder has the name it had.
    folder = tmp_path / "stored"
    with zipfile.ZipFile(STORED / "storage.zip") as archive:
        archive.extractall(folder)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


@pytest.mark.parametrize("overrides", [DATA, CHAT], ids=["text", "chat"])
def test_prepared_data_is_found_and_not_prepared_again(
    ray_session: None, root: Path, overrides: tuple[str, ...]
) -> None:
    before = contents(root / "storage" / "data")
    code, output = job.run("prepare", *overrides, cwd=root)
    assert code == 0, output
    assert "Already prepared" in output
    assert contents(root / "storage" / "data") == before


def test_a_run_resumes_to_equal_losses(ray_session: None, root: Path) -> None:
    before = contents(root / "storage" / "data" / "files-bpe-360bf46e")
    code, output = job.run("pretrain", *DATA, *RUN, cwd=root)
    assert code == 0, output
    after = contents(root / "storage" / "data" / "files-bpe-360bf46e")
    assert {name: after[name] for name in before} == before, "the data isn't prepared again"
    assert "resumed at step 4" in output
    run_dir = root / "storage" / "runs" / "stored"
    resumed = {
        str(event["step"]): [
            event["train/loss"],
            event["train/grad_norm"],
            event["sample_ids_sha256"],
        ]
        for event in job.events(run_dir, "step")
        if event["attempt"] == 2
    }
    reference = json.loads((STORED / "reference.json").read_text())
    assert resumed.keys() == reference["steps"].keys() == {"5", "6", "7", "8"}
    for step, values in reference["steps"].items():
        if torch.backends.cpu.get_cpu_capability() == reference["cpu"]:
            assert resumed[step] == values
        else:
            # Another processor's instructions round otherwise.
            assert resumed[step][:2] == pytest.approx(values[:2], rel=1e-4)
            assert resumed[step][2] == values[2]
    manifest = json.loads((run_dir / "checkpoints" / "step-00000008" / "MANIFEST.json").read_text())
    assert manifest["config_digest"] == reference["config_digest"]
    assert manifest["data_digests"] == reference["data_digests"]
