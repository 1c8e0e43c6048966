"""Resuming with another number of steps: a message before the learning rate decays, an error after."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from raymill.checkpoint.commit import commit
from raymill.checkpoint.fence import raise_fence
from raymill.checkpoint.layout import Layout, ParameterEntry
from raymill.checkpoint.manifest import CheckpointManifest
from raymill.checkpoint.retention import committed_steps
from raymill.config import load
from raymill.driver.resolution import resolved_run
from raymill.engine.checkpoints import retain
from raymill.engine.resolved_run import ResolvedRun
from raymill.engine.schedule import learning_rate_factor
from raymill.engine.start import claim_and_resolve_start, extension_overrides, resolve_start
from raymill.errors import CheckpointError, ConfigError

DIGESTS = ("d" * 64,)


class Alone:
    """A group of one."""

    rank = 0
    world_size = 1

    def gather_to_zero(self, data: bytes) -> list[bytes]:
        return [data]

    def broadcast(self, value: object) -> object:
        return value


def assigned(root: Path, *overrides: str) -> ResolvedRun:
    """Return a run of 100 steps that decays from step 80 on, unless the overrides change that."""
    settings = ["tracking=none", f"storage.root={root}", "run.name=base", "train.steps=100"]
    return resolved_run(load("pretrain", [*settings, *overrides]), {root / "data": 1.0})


def commit_at(resolved: ResolvedRun, *steps: int) -> None:
    """Commit checkpoints of the run at these steps."""
    raise_fence(resolved.checkpoints, resolved.token)
    if (remote := resolved.remote) is not None:
        remote.fence_off()
    for step in steps:
        manifest = CheckpointManifest(
            step, step * 32, step * 320, 1, 1, resolved.config, resolved.config_digest, DIGESTS,
            "t" * 64, None, None, {}, token=resolved.token,
        )  # fmt: skip
        values = {"fp32": np.zeros(4, dtype=np.float32)}
        layout = Layout.equal_parts(1, {"a": ParameterEntry((4,), ())})
        commit(resolved.checkpoints, manifest, layout, [("a", 0, values)], Alone(), remote)


@pytest.mark.parametrize("steps", ["train.steps=200", "train.steps=90"])
def test_another_number_of_steps_is_refused_once_the_decay_has_begun(
    tmp_path: Path, steps: str
) -> None:
    commit_at(assigned(tmp_path), 40, 70, 80, 85)
    asked = assigned(tmp_path, steps)
    last = min(80, round(0.8 * asked.total_steps))
    kept = 80 if last == 80 else 70
    with pytest.raises(ConfigError, match=re.escape(f"{steps}:")) as refusal:
        resolve_start(asked, DIGESTS)
    assert f"decays from step {last} on" in str(refusal.value)
    assert f"run.from=base@{kept}" in str(refusal.value)
    jump = [
        learning_rate_factor(asked.job.schedule, 86, total) for total in (100, asked.total_steps)
    ]
    assert f"from {jump[0]:.0%} of its peak to {jump[1]:.0%}" in str(refusal.value)
    fork = assigned(tmp_path, steps, "run.name=longer", f"run.from=base@{kept}")
    assert resolve_start(fork, DIGESTS).step == kept, "what the refusal says to do works"


def test_a_finished_run_is_not_made_longer_and_says_from_where_to_go_on(tmp_path: Path) -> None:
    done = assigned(tmp_path)
    commit_at(done, 60, 100)
    with pytest.raises(ConfigError, match=r"from 0% of its peak to 100%.*run\.from=base@60"):
        resolve_start(assigned(tmp_path, "train.steps=200"), DIGESTS)
    assert resolve_start(done, DIGESTS).messages == ()
    assert extension_overrides(done) == "run.name=… run.from=base@60 train.steps=…"


def test_before_the_decay_more_steps_are_told(tmp_path: Path) -> None:
    commit_at(assigned(tmp_path), 80)
    start = resolve_start(assigned(tmp_path, "train.steps=200"), DIGESTS)
    assert (start.step, start.resumed) == (80, True)
    assert start.messages == (
        "train.steps=200: the learning rate decays from step 160 to 200, and not from 80 to 100 as "
        "planned before",
    )


def test_tokens_count_as_the_steps_that_they_make(tmp_path: Path) -> None:
    commit_at(assigned(tmp_path), 90)
    same = assigned(tmp_path, "train.steps=null", f"train.tokens={100 * 32 * 256}")
    assert resolve_start(same, DIGESTS).messages == ()
    more = assigned(tmp_path, "train.steps=null", f"train.tokens={150 * 32 * 256}")
    with pytest.raises(ConfigError, match=r"train\.tokens=1228800: .*decays from step 80 on"):
        resolve_start(more, DIGESTS)


def test_a_cosine_decays_from_the_end_of_the_warm_up(tmp_path: Path) -> None:
    commit_at(assigned(tmp_path, "schedule=cosine"), 40)
    with pytest.raises(
        ConfigError, match=r"decays from step 20 on.*no checkpoint from before .* is left"
    ):
        resolve_start(assigned(tmp_path, "schedule=cosine", "train.steps=200"), DIGESTS)
    assert extension_overrides(assigned(tmp_path, "schedule=cosine")) is None


@pytest.mark.parametrize("schedule", ["schedule=constant", "schedule.final_fraction=1"])
def test_where_nothing_decays_a_run_may_be_of_any_length(tmp_path: Path, schedule: str) -> None:
    commit_at(assigned(tmp_path, schedule), 100)
    start = resolve_start(assigned(tmp_path, schedule, "train.steps=200"), DIGESTS)
    assert (start.step, start.messages) == (100, ())
    assert extension_overrides(assigned(tmp_path, schedule)) == "train.steps=…"


def test_a_run_may_end_where_it_is(tmp_path: Path) -> None:
    commit_at(assigned(tmp_path), 85)
    assert resolve_start(assigned(tmp_path, "train.steps=85"), DIGESTS).step == 85


def test_the_checkpoint_from_before_the_decay_is_kept(tmp_path: Path) -> None:
    run = assigned(tmp_path, "checkpoint.keep_last=1")
    for step in (30, 60, 80, 90, 100):
        commit_at(run, step)
        retain(run)
    assert [step for step, _ in committed_steps(run.checkpoints)] == [80, 100]


CHANGED = ("data.mixture={a: 1, b: 1}", "data.mixture_changes={50%: {a: 1}}")


def test_another_number_of_steps_may_not_move_a_change_of_weights_in_the_past(
    tmp_path: Path,
) -> None:
    resolved = assigned(tmp_path, *CHANGED, "schedule=constant")
    commit_at(resolved, 40)
    longer = assigned(tmp_path, *CHANGED, "schedule=constant", "train.steps=120")
    assert resolve_start(longer, DIGESTS).step == 40, "it lies ahead: after step 50, and then 60"
    commit_at(resolved, 70)
    problem = r"mixture_changes\[50%\]: weights would change after step 60, and not 50 as planned"
    with pytest.raises(ConfigError, match=problem):
        resolve_start(longer, DIGESTS)
    assert resolve_start(resolved, DIGESTS).step == 70


def test_a_run_from_before_there_were_changes_of_weights_resumes(tmp_path: Path) -> None:
    resolved = assigned(tmp_path)
    before = {key: v for key, v in resolved.config.items() if not key.startswith("data.m")}
    before |= {key: v for key, v in resolved.config.items() if key == "data.mixture"}
    before["data.max_bad_fraction"] = resolved.config["data.max_bad_fraction"]
    commit_at(replace(resolved, config=before), 10)
    start = resolve_start(resolved, DIGESTS)
    assert start.step == 10 and start.order_version == 1
    changed = assigned(tmp_path, *CHANGED)
    with pytest.raises(ConfigError, match="mixture_changes"):
        resolve_start(changed, DIGESTS)


def test_a_fork_keeps_the_version_of_the_order_with_the_position(tmp_path: Path) -> None:
    commit_at(assigned(tmp_path), 10)
    fork = assigned(tmp_path, "run.name=fork", "run.from=base@10")
    start = resolve_start(fork, DIGESTS)
    assert (start.samples, start.order_version) == (320, 1)
    assert resolve_start(assigned(tmp_path, "run.name=new"), DIGESTS).order_version == 2


def test_another_machine_starts_from_the_store(uri: str, tmp_path: Path) -> None:
    """Start without a copy here: rank 0 looks at the store, and each rank reads its part there."""

    def on(machine: str, token: int, *overrides: str) -> ResolvedRun:
        place = (f"storage.root={uri}", f"storage.scratch={tmp_path / machine}")
        resolved = replace(assigned(tmp_path, *place, *overrides), token=token)
        raise_fence(resolved.checkpoints, token)  # as `acquire` does
        return resolved

    commit_at(on("one", 1), 40, 60)
    two = on("two", 2)
    start = claim_and_resolve_start(two, DIGESTS)
    assert (start.step, start.resumed) == (60, True)
    assert start.checkpoint is not None
    assert start.checkpoint.location.startswith(f"{uri}/runs/base/checkpoints/step-00000060-1.0-")
    assert start.checkpoint.reader(shared=True).read("fp32", "a").tolist() == [0.0] * 4
    assert start.checkpoint.cache.is_dir()
    assert not committed_steps(two.checkpoints)
    commit_at(two, 80)
    assert resolve_start(two, DIGESTS).step == 80
    fork = on("three", 1, "run.name=fork", "run.from=base@40")
    start = claim_and_resolve_start(fork, DIGESTS)
    assert (start.step, start.resumed) == (40, False)
    assert start.checkpoint is not None
    assert start.checkpoint.reader().read("fp32", "a", 1, 2).tolist() == [0.0] * 2
    # Of a fork no older checkpoint is used, so damage is an error.
    remote = fork.remote_of("base")
    assert remote is not None
    remote.mark_damaged(start.checkpoint.location, "rank-00007 is damaged")
    with pytest.raises(CheckpointError, match="rank-00007 is damaged"):
        resolve_start(fork, DIGESTS)
