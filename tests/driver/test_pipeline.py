"""The whole path as a user runs it: one command, one Ray, a registered model that talks."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from data.chat_factory import write_jsonl
from driver import job
from driver.conftest import Workshop
from driver.job import ROOT

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def finished(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    root = tmp_path_factory.mktemp("pipeline")
    write_inputs(root)
    code, output = job.run_alone("pipeline", *overrides(root), cwd=root)
    assert code == 0, output
    return root, output


def write_inputs(root: Path) -> None:
    job.write_corpus(root / "texts")
    chats = [{"prompt": f"Which mill is {n}?", "completion": f"Mill {n % 9}."} for n in range(300)]
    prompts = [{"prompt": f"Which mill is {n}?", "verifier": "length"} for n in range(60)]
    write_jsonl(root / "chats.jsonl", chats)
    write_jsonl(root / "prompts.jsonl", prompts)


def overrides(root: Path) -> tuple[str, ...]:
    return (
        "experiment=tiny", "data=files", f"data.path={root / 'texts'}", "tokenizer.vocab_size=300",
        "data.sequence_length=64", "data.row_group_rows=8", "data.validation.fraction=0.2", "train.threads=1",
        "run.name=whole", f"sft.data.path={root / 'chats.jsonl'}", "sft.data.row_group_rows=8",
        f"rank.data.path={root / 'prompts.jsonl'}", f"rlhf.data.path={root / 'prompts.jsonl'}",
        "rlhf.data.row_group_rows=4", "rlhf.data.sequence_length=40", "reward.data.sequence_length=63",
        "ask=Which mill?",
    )  # fmt: skip


def test_what_it_prints(finished: tuple[Path, str]) -> None:
    root, output = finished
    lines = output.splitlines()
    assert f"summary  {root}/storage/runs/whole/summary.json" in lines
    assert f"summary  {root}/storage/runs/whole-sft/summary.json" in lines
    assert "you> Which mill?" in lines
    for noise in ("Traceback", "Warning", "INFO", "ray::", "DeepSpeed"):
        assert noise not in output
    for text in ("held-out loss", "bits per byte before training", "byte trigram", "gzip -9",
                 "registered models:/assistant/1 as assistant@pretrained",
                 "registered models:/assistant/2 as assistant@sft",
                 "by the automatic rule length standing in for human annotators",
                 "registered models:/assistant/3 as assistant@reward",
                 "registered models:/assistant/4 as assistant@aligned"):  # fmt: skip
        assert text in output


def test_what_it_leaves(finished: tuple[Path, str]) -> None:
    run_dir = finished[0] / "storage" / "runs" / "whole"
    names = {path.name for path in run_dir.iterdir()}
    assert {"config.yaml", "metrics.jsonl", "checkpoints", "export", "logs", "samples",
            "summary.json", "report.html", "loss.png"} <= names  # fmt: skip
    assert "ray" not in names, "Ray's own bookkeeping isn't kept"
    summary = json.loads((run_dir / "summary.json").read_text())
    assert summary["registered"].startswith("models:/assistant/1")
    assert (
        summary["figures"]["eval/bits_per_byte"] < summary["figures"]["eval/bits_per_byte/before"]
    )
    assert yaml.safe_load((run_dir / "config.yaml").read_text())["run"]["name"] == "whole"
    steps = job.events(run_dir, "step")
    assert [event["step"] for event in steps] == list(range(1, 13))
    assert steps[-1]["samples"] == 96
    page = (run_dir / "report.html").read_text()
    assert 'src="data:image/png' in page
    assert "http://" not in page.replace("http://www.w3.org", "")


def test_transformers_alone_confirms_the_figure(finished: tuple[Path, str]) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "bench" / "confirm_bits_per_byte.py"),
         str(finished[0] / "storage" / "runs" / "whole")],
        capture_output=True, text=True, check=False, env=job.environment(),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_same_command_skips_what_is_finished(finished: tuple[Path, str]) -> None:
    root, _ = finished
    code, output = job.run("pipeline", *overrides(root), cwd=root)
    assert code == 0, output
    assert "Already prepared" in output
    assert "is finished at step 12" in output
    assert len(job.events(root / "storage" / "runs" / "whole", "attempt")) == 1
    assert len(job.events(root / "storage" / "runs" / "whole-sft", "attempt")) == 1


def test_the_model_talks_and_its_prompt_is_verbatim(finished: tuple[Path, str]) -> None:
    root, _ = finished
    prompt = "  The {red}, mill: "
    said = [
        job.run(
            "chat",
            f"prompt={prompt}",
            "max_new_tokens=12",
            "seed=3",
            "model=models:/assistant@pretrained",
            cwd=root,
        )
        for _ in range(2)
    ]
    assert said[0] == said[1]
    code, output = said[0]
    assert code == 0, output
    assert output.startswith(f"models:/assistant/1\n{prompt}")
    code, output = job.run("chat", "model=models:/assistant@nothing", "prompt=x", cwd=root)
    assert code == 2
    assert "there is: models:/assistant@aligned, models:/assistant@pretrained, " in output


def test_pretraining_continues_from_a_registered_version(finished: tuple[Path, str]) -> None:
    root, _ = finished
    others = ("sft.", "rank.", "reward.", "rlhf.", "ask=")
    own = [text for text in overrides(root) if not text.startswith(others)]
    code, output = job.run(
        "pretrain", *own, "run.name=continued", "model=models:/assistant@pretrained",
        "train.steps=2", "schedule.warmup_steps=0", cwd=root,
    )  # fmt: skip
    assert code == 0, output
    before = json.loads((root / "storage/runs/whole/summary.json").read_text())["figures"]
    first = job.events(root / "storage/runs/continued", "evaluation")[0]
    assert first["step"] == 0
    assert first["eval/bits_per_byte"] == pytest.approx(before["eval/bits_per_byte"], abs=1e-6)
    summary = json.loads((root / "storage/runs/continued/summary.json").read_text())
    assert summary["parent"] == "models:/assistant/1", "pinned to a version"
    code, output = job.run(
        "pretrain", *own, "run.name=misfit", "model=models:/assistant/1",
        "arch.layers=3", cwd=root,
    )  # fmt: skip
    assert code == 2
    assert "arch.layers=3: the model in" in output


def test_damage_and_absence_are_refused_before_the_first_step(
    workshop: Workshop, tmp_path: Path
) -> None:
    import shutil

    code, output = job.run(
        "pretrain", *workshop.overrides, "tracking=none", f"storage.root={tmp_path}",
        cwd=workshop.root,
    )  # fmt: skip
    assert code == 1
    assert "there is no prepared data in" in output
    assert "python jobs/prepare.py experiment=tiny" in output
    shutil.copytree(workshop.root / "storage" / "data", tmp_path / "data")
    (shard,) = tmp_path.glob("data/*/train/00000.parquet")
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-100])
    arguments = (*workshop.overrides, "tracking=none", f"storage.root={tmp_path}")
    code, output = job.run("pretrain", *arguments, cwd=workshop.root)
    assert code == 1
    assert "00000.parquet" in output
    assert "Traceback" not in output


@pytest.mark.slow
def test_a_flipped_byte_stops_the_run_by_name(workshop: Workshop, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(workshop.root / "storage" / "data", tmp_path / "data")
    (shard,) = tmp_path.glob("data/*/train/00000.parquet")
    damaged = bytearray(shard.read_bytes())
    damaged[len(damaged) // 3] ^= 4
    shard.write_bytes(bytes(damaged))
    code, output = job.run(
        "pretrain", *workshop.overrides, "tracking=none", f"storage.root={tmp_path}",
        "train.steps=200", cwd=workshop.root,
    )  # fmt: skip
    assert code == 1
    assert "00000.parquet" in output
    assert "row group" in output
    assert "Traceback" not in output


def test_mlflow_down_from_the_start_costs_nothing(workshop: Workshop) -> None:
    code, output = job.run(
        "pretrain", *workshop.overrides, "tracking.uri=http://127.0.0.1:9", "run.name=down",
        "tracking.flush_timeout_s=3", cwd=workshop.root,
    )  # fmt: skip
    assert code == 0, output
    assert "not registered: MLflow at http://127.0.0.1:9 can't be reached" in output
    assert "nothing is lost" in output
    assert (workshop.run_dir("down") / "summary.json").exists()
    assert "Traceback" not in output
