"""Reinforcement learning as a user runs it, with samplers and judges killed in the middle: what is left is what
an undisturbed run leaves."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from cluster import job
from cluster.test_resume import wait_for_no_orphans
from engine.alignment_probe import write_parent, write_prompts
from raymill.data.chat.tokenizer import chat_tokenizer

pytestmark = pytest.mark.integration
STEPS = 24


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("aligned")
    parent = write_parent(root / "parent", hidden=32)
    chat_tokenizer(parent, "auto", ()).save(parent)
    records = [{"prompt": f"say {n}", "tokens": list(range(97, 123))} for n in range(80)]
    write_prompts(root / "prompts.jsonl", records)
    return root


def overrides(root: Path, name: str, *more: str) -> tuple[str, ...]:
    return (
        f"parent={root / 'parent'}", f"data.path={root / 'prompts.jsonl'}", "tracking=none",
        "data.sequence_length=48", "data.row_group_rows=4", "data.validation.fraction=0.2",
        "reward.functions={token_share: 1.0}", "rollout.max_new_tokens=10", "rollout.group=4",
        "rollout.batch=8", "train.global_batch=8", "train.micro_batch=16", f"train.steps={STEPS}",
        "schedule.warmup_steps=0", "evaluation.rows=8", "evaluation.every=0", "checkpoint.every=5",
        "optim.learning_rate=3e-3", f"run.name={name}", *more,
    )  # fmt: skip


@pytest.fixture(scope="module")
def undisturbed(place: Path) -> tuple[Path, str]:
    code, output = job.run("rlhf", *overrides(place, "quiet"), cwd=place)
    assert code == 0, output
    return place / "storage" / "runs" / "quiet", output


def test_what_it_says_and_leaves(undisturbed: tuple[Path, str]) -> None:
    run_dir, output = undisturbed
    for noise in ("Traceback", "Warning", "INFO", "ray::", "DeepSpeed", "Loading weights"):
        assert noise not in output
    for text in ("prompts       ", "held-out prompts: reward", "KL to the reference", "exported"):
        assert text in output, output
    steps = job.events(run_dir, "step")
    assert [event["step"] for event in steps] == list(range(1, STEPS + 1))
    assert steps[-1]["rollout/reward"] > steps[0]["rollout/reward"]
    tables = {path.name for path in (run_dir / "samples").iterdir()}
    assert {"rollouts-00000010.json", f"prompts-{STEPS:08d}.json"} <= tables
    page = (run_dir / "report.html").read_text()
    assert "Held-out prompts" in page


def comparable(event: dict[str, Any]) -> dict[str, Any]:
    return {
        key: value for key, value in event.items()
        if not key.startswith("perf/") and key not in ("time", "attempt")
    }  # fmt: skip


def assert_equal_steps(run_dir: Path, other: Path) -> None:
    """Each step as it was written last."""
    found, expected = (
        {event["step"]: comparable(event) for event in job.events(folder, "step")}
        for folder in (run_dir, other)
    )
    assert found == expected


def actors(name: str, since: float) -> list[psutil.Process]:
    return [
        process for process in psutil.process_iter(["cmdline", "create_time"])
        if process.info["create_time"] >= since
        and (process.info["cmdline"] or [""])[0].startswith(f"ray::{name}")
    ]  # fmt: skip


def test_killed_samplers_are_replaced_and_a_killed_driver_resumes(
    place: Path, undisturbed: tuple[Path, str]
) -> None:
    """Two samplers instead of one besides: the number of them decides nothing."""
    run_dir = place / "storage" / "runs" / "killed"
    settings = overrides(place, "killed", "rollout.actors=2")
    began = time.time()
    process = job.start("rlhf", *settings, cwd=place)
    job.wait_for_step(process, run_dir, 3)
    [victim, *_] = actors("SamplingActor", began)
    victim.send_signal(signal.SIGKILL)
    job.interrupt_after(process, run_dir, 12, signal.SIGKILL)
    process.communicate(timeout=job.TIMEOUT_S)
    wait_for_no_orphans(run_dir)
    code, output = job.run("rlhf", *settings, cwd=place)
    assert code == 0, output
    told = [event["text"] for event in job.events(run_dir, "message")]
    assert len(told) == 1
    assert "rollout actor" in told[0]
    assert "was lost" in told[0]
    assert {event["attempt"] for event in job.events(run_dir, "step")} == {1, 2}
    assert_equal_steps(run_dir, undisturbed[0])
