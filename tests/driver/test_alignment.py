"""Reinforcement learning as a user runs it, with samplers and judges killed in the middle: what is left is what
an undisturbed run leaves."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
from pathlib import Path
from typing import Any

import psutil
import pytest

from driver import job
from engine.alignment_probe import write_judge, write_parent, write_prompts
from faults.injector import happened, with_faults

pytestmark = pytest.mark.integration
STEPS = 12


@pytest.fixture(scope="module")
def place(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("aligned")
    parent = write_parent(root / "parent", hidden=32)
    write_judge(parent, root / "judge")
    records = [{"prompt": f"say {n}", "tokens": list(range(97, 123))} for n in range(80)]
    write_prompts(root / "prompts.jsonl", records)
    return root


def overrides(root: Path, name: str, *more: str) -> tuple[str, ...]:
    return (
        f"parent={root / 'parent'}", f"data.path={root / 'prompts.jsonl'}", "tracking=none",
        "data.sequence_length=48", "data.row_group_rows=4", "data.validation.fraction=0.2",
        "reward.functions={token_share: 1.0}", f"reward.model={root / 'judge'}",
        "reward.model_weight=0.1", "rollout.max_new_tokens=10", "rollout.group_size=4",
        "rollout.batch=8", "train.global_batch=8", "train.micro_batch=16", "train.threads=1",
        f"train.steps={STEPS}",
        "schedule.warmup_steps=0", "evaluation.rows=8", "evaluation.every=0", "checkpoint.every=3",
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
    for text in (
        "samplers      transformers, 1 actors of 1 CPUs",
        "judges        1 functions in 1",
        "prompts       ",
        "held-out prompts: reward",
        "KL to the reference",
        "exported",
    ):
        assert text in output, output
    steps = job.events(run_dir, "step")
    assert [event["step"] for event in steps] == list(range(1, STEPS + 1))
    assert steps[-1]["rollout/reward"] > steps[0]["rollout/reward"]
    tables = {path.name for path in (run_dir / "samples").iterdir()}
    assert {"rollouts-00000010.json", f"prompts-{STEPS:08d}.json"} <= tables
    table = json.loads((run_dir / "samples" / "rollouts-00000010.json").read_text())
    advantages = [row[table["columns"].index("advantage")] for row in table["data"][:4]]
    assert sum(advantages) == pytest.approx(0, abs=1e-3), "those of a prompt's answers"
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


def kill(driver: subprocess.Popen[str], name: str) -> None:
    """One of a job's processes that Ray calls so; other jobs may run at the same time."""
    for process in psutil.Process(driver.pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if "".join(process.cmdline()[:1]).startswith(f"ray::{name}"):
                process.send_signal(signal.SIGKILL)
                return
    raise AssertionError(f"no process of {name}")


def test_whatever_is_killed_the_run_is_the_one_that_never_was(
    place: Path, undisturbed: tuple[Path, str], tmp_path: Path
) -> None:
    """A sampler and a judge are replaced, a train worker is started again, and after the driver's end the
    same command continues. It has two samplers instead of one, since their number changes no result.

    Training is held while something is killed, and continues when the file `after-<number>` exists.
    """
    run_dir = place / "storage" / "runs" / "killed"
    settings = overrides(place, "killed", "rollout.actors=2")
    victims = ("RolloutActor", "RewardActor", "RayTrainWorker")
    holds = [
        {"what": "hold", "until": f"{tmp_path}/after-{n}", "rank": 0, "step": n + 1, "phase": "forward"}
        for n in range(1, len(victims) + 1)
    ]  # fmt: skip
    standing = {"what": "sleep", "rank": 0, "step": 7, "phase": "forward"}
    process = job.start("rlhf", *settings, cwd=place, env=with_faults(tmp_path, *holds, standing))
    for number, victim in enumerate(victims, 1):
        job.wait_for(process, lambda number=number: happened(tmp_path) == number)
        kill(process, victim)
        (tmp_path / f"after-{number}").touch()
    job.kill_after(process, run_dir, 6)
    code, output = job.run("rlhf", *settings, cwd=place)
    assert code == 0, output
    told = [event["text"] for event in job.events(run_dir, "message")]
    assert [text.split(" actor")[0] for text in told] == ["rollout", "reward"]
    assert all("was lost" in text for text in told)
    assert {event["attempt"] for event in job.events(run_dir, "step")} == {1, 2, 3}
    assert_equal_steps(run_dir, undisturbed[0])


def test_the_next_answers_are_sampled_while_these_are_learned_from(place: Path) -> None:
    settings = overrides(place, "overlapped", "rollout.staleness=1", "train.steps=8")
    code, output = job.run("rlhf", *settings, cwd=place)
    assert code == 0, output
    steps = job.events(place / "storage" / "runs" / "overlapped", "step")
    assert [event["step"] for event in steps] == list(range(1, 9))
    lag = [event["sampler/ratio"] for event in steps]
    assert lag[0] < 1 + 1e-5 < min(lag[1:]), "the sampler is one update behind"
    waited, sampled = (
        sum(event[f"perf/{what}_s"] for event in steps[1:]) for what in ("wait", "generate")
    )
    assert waited < sampled
