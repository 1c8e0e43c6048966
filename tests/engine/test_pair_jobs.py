"""Whole runs on pairs without Ray: reward models and DPO under every ZeRO stage, with adapters, with cached and
live references; exact resume; exports with the trained model's outputs."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification

from data.chat_factory import write_jsonl
from engine.alignment_probe import ADDED, VOCAB, assigned, events, run, steps, write_parent
from raymill.checkpoint.resume import newest_verified
from raymill.data.messages.tokenizer import chat_tokenizer
from raymill.data.store.manifest import load_prepared
from raymill.data.store.validation import ValidationSet
from raymill.driver.exports import export_checkpoint
from raymill.engine import reference
from raymill.engine.reference import CachedReference
from raymill.engine.resolved_run import ResolvedRun
from raymill.engine.start import resolve_start
from raymill.errors import ConfigError
from raymill.model.parent import load_parent
from raymill.objective.pairs import PairSequences
from raymill.recipes.preference_tuning import PreferenceTuning
from raymill.recipes.registry import recipe_of
from raymill.track.marker import write_marker
from recipes.test_reinforcement_learning import comparable
from track.test_marker import flip

LN2 = 0.69314718


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pairs")
    write_parent(root / "parent", hidden=32)
    # Were its dropout left on, no first loss would be ln 2, nor any two runs the same.
    config = root / "parent" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"attention_dropout": 0.3}))
    drawn = np.random.default_rng(5)
    records = [
        {
            "prompt": f"mill {number % 24}",
            "chosen": "grinds " + "x" * int(drawn.integers(1, 9)),
            "rejected": "rests " + "y" * int(drawn.integers(1, 9)),
            "margin": float(drawn.integers(0, 3)),
        }
        for number in range(60)
    ]
    write_jsonl(root / "pairs.jsonl", records)
    return root


@pytest.mark.slow
def test_a_compiled_run_has_the_losses_of_a_plain_one(place: Path) -> None:
    """Compile with torch's own compiler; its time is logged with the steps that it interrupts."""
    plain, compiled = run(
        [
            made(place, "dpo", f"compile-{on}", f"train.compile={on}", "train.steps=6")
            for on in ("false", "true")
        ]
    )
    losses = [[event["train/loss"] for event in steps(found)] for found in (plain, compiled)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert not any("perf/compile_s" in event for event in steps(plain))
    took = [event.get("perf/compile_s", 0.0) for event in steps(compiled)]
    assert took[0] > 0 and took[3:] == [0.0, 0.0, 0.0], took


def made(root: Path, kind: str, name: str, *overrides: str, parent: str = "parent") -> ResolvedRun:
    return assigned(
        kind, root / parent, root / "storage", f"data.path={root / 'pairs.jsonl'}",
        "data.sequence_length=48", "data.row_group_rows=4", "data.validation.fraction=0.2",
        "train.global_batch=8", "train.micro_batch=2", "train.steps=3", "evaluation.every=0",
        "evaluation.batch=3", "optim.learning_rate=1e-3", f"run.name={name}", *overrides,
    )  # fmt: skip


DPO = {
    "cached": (),
    "cached zero3": ("zero=stage3",),
    "live": ("loss.reference=live",),
    "live zero3": ("loss.reference=live", "zero=stage3"),
    "one pass": ("train.micro_batch=4",),
}
ADAPTERS = {
    "lora": ("lora.rank=4",),
    "lora live": ("lora.rank=4", "loss.reference=live"),
    "lora zero3 live": ("lora.rank=4", "loss.reference=live", "zero=stage3"),
}
IN_BF16 = {
    "bf16": ("train.precision=bf16", "loss.reference=live"),
    "bf16 zero3": ("train.precision=bf16", "loss.reference=live", "zero=stage3"),
}
MUON = {
    "muon": ("optim=muon",),
    "muon zero3": ("optim=muon", "zero=stage3"),
}
REWARD = {
    "reward": (),
    "reward muon": ("optim=muon", "zero=stage2"),
    "reward zero3": ("zero=stage3",),
    "reward lora": ("lora.rank=4", "zero=stage3"),
}


SETTINGS = DPO | ADAPTERS | IN_BF16 | MUON | REWARD
ALL = {1: ("cached", "lora", "reward"), 2: tuple(SETTINGS)}
# In every run of the tests; the reference of each group is on one worker, and the others on two.
FEW = {
    1: ("cached", "lora", "muon", "reward"),
    2: ("live zero3", "lora zero3 live", "bf16 zero3", "muon zero3", "reward zero3"),
}
Trained = dict[str, list[dict[str, Any]]]


def train(place: Path, names: dict[int, tuple[str, ...]], prefix: str) -> Trained:
    """Return the events of each run, by its number of workers and its name."""
    found: Trained = {}
    for world, chosen in names.items():
        cases = {
            name: made(
                place, "reward" if "reward" in name else "dpo",
                f"{prefix}-{name}-{world}".replace(" ", "-"), f"run.workers={world}", *SETTINGS[name],
            )
            for name in chosen
        }  # fmt: skip
        results = run(list(cases.values()), world)
        found |= {f"{world} {name}": one for name, one in zip(cases, results, strict=True)}
    return found


@pytest.fixture(scope="module")
def few(place: Path) -> Trained:
    return train(place, FEW, "few")


@pytest.fixture(scope="module", params=["few", pytest.param("all", marks=pytest.mark.slow)])
def trained(request: pytest.FixtureRequest, place: Path) -> Trained:
    if request.param == "few":
        found: Trained = request.getfixturevalue("few")
        return found
    return train(place, ALL, "all")


def test_the_first_loss_is_ln_2(trained: Trained) -> None:
    """The policy is the reference before the first update, for every kind of reference."""
    for name, found in trained.items():
        if "reward" not in name:
            assert steps(found)[0]["train/loss"] == pytest.approx(LN2, abs=1e-4), name
            assert steps(found)[-1]["train/loss"] < LN2, name
        if (
            "bf16" in name
        ):  # both compute the same, bit by bit, from weights in bf16 and positions in fp32
            assert steps(found)[0]["train/loss"] == pytest.approx(LN2, abs=1e-7), name


def test_how_the_work_is_shared_changes_nothing(trained: Trained) -> None:
    for group in (DPO, ADAPTERS, MUON, {"reward": (), "reward zero3": ()}):
        runs = {name: steps(f) for name, f in trained.items() if name.split(" ", 1)[1] in group}
        [(_, reference), *others] = runs.items()
        assert others, "there is something to compare"
        for name, found in others:
            for ours, theirs in zip(found, reference, strict=True):
                for key in ("train/loss", "train/grad_norm", "reward/margin"):
                    assert ours[key] == pytest.approx(theirs[key], rel=2e-4, abs=2e-6), (name, key)


def test_every_trainable_parameter_learns(trained: Trained) -> None:
    for name, found in trained.items():
        weights = next(event for event in found if event["kind"] == "weights")
        assert weights["still"] == [], name
        if "lora" in name:
            assert all("lora" in n or "score" in n or "tokens" in n for n in weights["trained"])


@pytest.mark.parametrize("kind", ["dpo", "reward"])
def test_resume_is_bit_exact(place: Path, kind: str) -> None:
    [whole] = run([made(place, kind, f"{kind}-whole", "train.steps=4")])
    half = made(place, kind, f"{kind}-halves", "train.steps=2")
    run([half])
    run([made(place, kind, f"{kind}-halves", "train.steps=4")])
    resumed = steps(events(half))
    assert [event["attempt"] for event in resumed] == [1, 1, 2, 2]
    for ours, theirs in zip(resumed, steps(whole), strict=True):
        assert comparable(ours) == comparable(theirs)


def test_a_cached_reference_is_of_one_seed_where_the_seed_decides_weights(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The template's two tokens are drawn from the seed, unless the parent has them."""
    known = place / "known"
    load_parent(place / "parent", VOCAB + ADDED, [], "sdpa", 5).save_pretrained(known)
    chat_tokenizer(place / "parent", "auto", ()).save(known)

    def path(seed: int, parent: str = "parent") -> Path:
        made_for = made(place, "dpo", "cache", parent=parent)
        # The same data, as a mixture is, which wasn't split by this seed.
        job = replace(made_for.job, run=replace(made_for.job.run, seed=seed))
        resolved = replace(made_for, job=job)
        prepared = [load_prepared(folder) for folder in resolved.folders]
        recipe = recipe_of(resolved, prepared)
        assert isinstance(recipe, PreferenceTuning)
        return recipe._cache.path

    assert path(1) == path(1) != path(2)
    assert path(1, known.name) == path(2, known.name)
    now = path(1)
    monkeypatch.setattr(reference, "FORMAT", 1)
    assert path(1) != now, "what was cached in another format isn't read"


def test_transformers_alone_confirms_the_reward_model(place: Path) -> None:
    """The export, loaded as any tool would, ranks the held-out pairs as the run logged."""
    resolved = made(place, "reward", "exported", "train.steps=6", "optim.learning_rate=3e-3")
    [found] = run([resolved])
    newest = newest_verified(resolved.checkpoints)
    assert newest is not None
    folder = export_checkpoint(resolved, newest).folder
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    assert model.config.num_labels == 1
    right = weight = 0.0
    prepared = load_prepared(resolved.folders[0])
    for rows in ValidationSet(prepared.folder, rank=0, world_size=1, batch_rows=4):
        sides = PairSequences.from_rows(rows)
        for pair in range(len(rows)):
            scores = []
            for side in (pair, len(rows) + pair):
                ids = sides.tokens[side, : sides.length[side]][None]
                with torch.no_grad():
                    scores.append(model(input_ids=ids).logits.item())
            right += float(sides.weight[pair]) * (scores[0] > scores[1])
            weight += float(sides.weight[pair])
    told = [event for event in found if event["kind"] == "evaluation"][-1]
    assert told["pairs/reward/accuracy"] == pytest.approx(right / weight, abs=1e-6)


def test_an_export_is_written_again_where_it_was_changed(place: Path, few: Trained) -> None:
    resolved = made(place, "dpo", "few-lora-1", "run.workers=1", *ADAPTERS["lora"])
    newest = newest_verified(resolved.checkpoints)
    assert newest is not None
    export = export_checkpoint(resolved, newest)
    assert export.adapter is not None
    files = [
        path
        for folder in (export.folder, export.adapter)
        for path in folder.iterdir()
        if path.name in ("model.safetensors", "adapter_model.safetensors", "tokenizer.json")
    ]
    assert len(files) == 4
    whole = {path: (path.read_bytes(), path.stat().st_ino) for path in files}
    export_checkpoint(resolved, newest)
    assert whole == {path: (path.read_bytes(), path.stat().st_ino) for path in files}
    for path in files[1:3]:
        flip(path)
        export_checkpoint(resolved, newest)
        assert {one: one.read_bytes() for one in files} == {k: v for k, (v, _) in whole.items()}
    shutil.rmtree(export.adapter)
    export_checkpoint(resolved, newest)
    assert {one: one.read_bytes() for one in files} == {k: v for k, (v, _) in whole.items()}


def test_a_run_does_not_go_on_with_other_weights_than_it_began_with(
    place: Path, few: Trained
) -> None:
    resolved = made(place, "dpo", "few-lora-1", "run.workers=1", *ADAPTERS["lora"])
    digests = tuple(load_prepared(folder).manifest.digest for folder in resolved.folders)
    assert resolve_start(resolved, digests).resumed
    with pytest.raises(
        ConfigError, match=r"parent now has different weights \(ffffffffffff; the run started"
    ):
        resolve_start(replace(resolved, parent_digest="f" * 64), digests)


def test_a_parent_that_was_changed_has_another_reference(place: Path, tmp_path: Path) -> None:
    """The parent may be an export whose marker names its checkpoint."""
    parent = shutil.copytree(place / "parent", tmp_path / "parent")
    (tmp_path / "pairs.jsonl").symlink_to(place / "pairs.jsonl")
    write_marker(parent, {"checkpoint_digest": "c" * 64})

    def reference() -> CachedReference:
        resolved = made(tmp_path, "dpo", "changed")
        digests = tuple(load_prepared(folder).manifest.digest for folder in resolved.folders)
        return CachedReference.open(resolved, digests, seeded=False)

    before = reference()
    before.record, before.values = np.arange(2), np.zeros((2, 2), np.float32)
    before._save()
    assert reference().known
    flip(parent / "model.safetensors")
    assert not reference().known
