"""Muon's update compared with its formulas and with torch's, and the assignment of matrices to ranks."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from engine.muon_reference import MuonReference, orthogonalized
from engine.probe import ARCH, VOCAB
from raymill.checkpoint.partition import Partition
from raymill.engine.matrix_exchange import Matrix, assign_owners, plan_rounds
from raymill.engine.muon import Muon, orthogonalize, update_scale
from raymill.engine.optimizers import build_optimizer, moments_of, muon_names
from raymill.errors import ConfigError
from raymill.model.build import build_model, hugging_face_config, plan_model
from raymill.model.parent import with_adapters
from raymill.schema.sections import ArchConfig, LoraConfig, OptimConfig
from sections import plain

SHAPES = [(48, 48), (24, 48), (96, 24), (1, 30), (30, 1)]
MUON = plain(OptimConfig, "muon", learning_rate=3e-3, momentum=0.95)


@pytest.mark.parametrize("shape", SHAPES)
def test_orthogonalizing_is_the_quintic_of_the_singular_values(shape: tuple[int, int]) -> None:
    matrix = np.random.default_rng(1).normal(size=shape) * 1e-3
    found = orthogonalize(torch.tensor(matrix)).numpy()
    assert np.abs(found - orthogonalized(matrix)).max() < 1e-5
    assert (
        np.abs(orthogonalize(torch.tensor(matrix), torch.float64) - orthogonalized(matrix)).max()
        < 1e-9
    )
    values = np.linalg.svd(found, compute_uv=False)
    assert values.max() < 1.21
    assert np.all(found[:0] == 0)
    assert torch.count_nonzero(orthogonalize(torch.zeros(shape))) == 0


@pytest.mark.parametrize("shape", SHAPES)
def test_updates_are_the_formulas(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(2)
    weight = rng.normal(size=shape)
    reference = MuonReference(weight, momentum=0.9, decay=0.1)
    parameter = torch.nn.Parameter(torch.tensor(weight, dtype=torch.float32))
    optimizer = Muon([{"params": [parameter], "weight_decay": 0.1, "muon": True}], momentum=0.9)
    for step in range(1, 7):
        rate = 0.02 / step
        gradient = rng.normal(size=shape) * step
        parameter.grad = torch.tensor(gradient, dtype=torch.float32)
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
        reference.step(gradient, rate)
    assert parameter.detach().numpy() == pytest.approx(reference.weight, abs=2e-5)
    momentum = optimizer.state[parameter]["momentum_buffer"].numpy()
    assert momentum == pytest.approx(reference.momentum, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("shape", SHAPES[:3])
def test_updates_are_torchs(shape: tuple[int, int]) -> None:
    """Compare with torch, which iterates in bf16 only and rounds before taking the norm; the rest agrees as
    fp32 does."""
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(shape, generator=generator)
    ours, theirs = (torch.nn.Parameter(weight.clone()) for _ in range(2))
    groups = [{"params": [ours], "weight_decay": 0.1, "muon": True}]
    optimizers = [
        Muon(groups, lr=0.02, momentum=0.95, dtype=torch.bfloat16),
        torch.optim.Muon(
            [theirs], lr=0.02, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw"
        ),
    ]
    for _ in range(5):
        ours.grad = torch.randn(shape, generator=generator)
        theirs.grad = ours.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    moved = (theirs - weight).norm()
    assert (ours - theirs).norm() < 0.02 * moved
    momenta = [
        optimizer.state[p]["momentum_buffer"]
        for optimizer, p in zip(optimizers, (ours, theirs), strict=True)
    ]
    assert torch.equal(*momenta)


def test_what_isnt_a_matrix_of_the_blocks_is_adamws_bit_by_bit() -> None:
    models = [build_model(ARCH, VOCAB, 0, 7) for _ in range(2)]
    adamw = plain(OptimConfig, "adamw", learning_rate=3e-3)
    optimizers = [
        build_optimizer(model, optim) for model, optim in zip(models, (MUON, adamw), strict=True)
    ]
    for step in range(3):
        for model, optimizer in zip(models, optimizers, strict=True):
            torch.manual_seed(step)
            for parameter in model.parameters():
                parameter.grad = torch.randn_like(parameter)
            optimizer.step()
    names = muon_names(models[0])
    pairs = zip(models[0].named_parameters(), models[1].parameters(), strict=True)
    same = {name: torch.equal(ours, theirs) for (name, ours), theirs in pairs}
    assert {name for name in same if not same[name]} == names


def test_an_update_has_the_size_of_adamws() -> None:
    """Liu et al.: a root mean square of 0.2 to 0.4 for every shape."""
    for shape in ((64, 64), (64, 256), (256, 64)):
        update = update_scale(shape) * orthogonalize(torch.randn(shape))
        assert 0.1 < float(update.square().mean().sqrt()) < 0.4


def architectures() -> dict[str, Any]:
    gpt2 = plain(
            ArchConfig,
        name="gpt2", family="gpt2", hidden_size=48, layers=2, heads=4, kv_heads=4, head_dim=None,
        intermediate_size=96, vocab_size=None, max_positions=64, tied_embeddings=True,
    )  # fmt: skip
    config = hugging_face_config(ARCH, VOCAB, 0)
    config.num_labels, config.tie_word_embeddings = 1, False
    return {
        "llama": build_model(ARCH, VOCAB, 0, 7),
        "untied": AutoModelForCausalLM.from_config(config),
        "gpt2": build_model(gpt2, VOCAB, 0, 7),
        "scalar": AutoModelForSequenceClassification.from_config(config),
    }


def test_blocks_matrices_are_muons_and_nothing_else() -> None:
    models = architectures()
    names = {name: muon_names(model) for name, model in models.items()}
    assert len(names["llama"]) == len(names["untied"]) == len(names["scalar"]) == 2 * 7
    assert len(names["gpt2"]) == 2 * 4
    assert "score.weight" in moments_of(models["scalar"], MUON)
    for name, model in models.items():
        for parameter, moments in moments_of(model, MUON).items():
            of_muon = parameter in names[name]
            assert moments == (("momentum_buffer",) if of_muon else ("exp_avg", "exp_avg_sq"))
            if of_muon:
                assert ".layers." in parameter or ".h." in parameter
        optimizer = build_optimizer(model, MUON)
        grouped = [p for group in optimizer.param_groups for p in group["params"]]
        assert len(grouped) == len({*map(id, grouped)}) == len(list(model.parameters()))
        decays = {group["weight_decay"] for group in optimizer.param_groups if group["muon"]}
        assert decays == {MUON.weight_decay}


def test_where_no_matrix_is_left_muon_is_refused() -> None:
    model = with_adapters(plan_model(ARCH, VOCAB, 0, 7), plain(LoraConfig, rank=2), (), 7).model
    assert muon_names(model) == set()
    with pytest.raises(ConfigError, match="all of them are frozen"):
        build_optimizer(model, MUON)


def cut(numels: list[int], world_size: int, stage: int) -> list[Matrix]:
    """Return square matrices as a ZeRO stage cuts them."""
    key, matrices, first = torch.empty(0), [], 0
    whole = sum(numels)
    for numel in numels:
        partition = {
            0: Partition(numel, 0, numel, replicated=True),
            1: Partition(numel, first, -(-whole // world_size)),
            3: Partition(numel, 0, -(-numel // world_size)),
        }[stage]
        side = round(numel**0.5)
        matrices.append(Matrix((side, side), partition, key, 0, 0))
        first += numel
    return matrices


@pytest.mark.parametrize("world_size", [1, 2, 3, 7, 64])
@pytest.mark.parametrize("stage", [0, 1, 3])
def test_matrices_are_dealt_out_evenly_and_once(stage: int, world_size: int) -> None:
    numels = [side * side for side in (8, 8, 16, 8, 32, 8, 16, 16, 8, 32, 8, 8)]
    matrices = cut(numels, world_size, stage)
    for matrix in matrices:
        ranges = [matrix.partition.range_of(rank) for rank in range(world_size)]
        if stage:
            ends = [start + numel for start, numel in ranges if numel]
            assert [start for start, numel in ranges if numel] == [0, *ends[:-1]]
            assert ends[-1] == matrix.partition.numel
            having = [rank for rank in range(world_size) if ranges[rank][1]]
            assert having == list(matrix.partition.ranks(world_size))
    owners = assign_owners(matrices, world_size)
    rounds = plan_rounds(matrices, world_size, bucket_elements=600)
    dealt = [id(matrix) for one_round in rounds for matrix, _ in one_round]
    assert sorted(dealt) == sorted(map(id, matrices))
    for one_round in rounds:
        elements: Counter[int] = Counter()
        count: Counter[int] = Counter()
        for matrix, owner in one_round:
            elements[owner] += matrix.partition.numel
            count[owner] += 1
        assert all(elements[owner] <= 600 or count[owner] == 1 for owner in elements)
    loads = Counter[int]()
    for matrix, owner in zip(matrices, owners, strict=True):
        assert matrix.partition.range_of(owner)[1] > 0, "an owner fetches the rest only"
        loads[owner] += matrix.cost
    if stage != 1:
        fair = sum(matrix.cost for matrix in matrices) / world_size
        assert max(loads.values()) <= fair + max(matrix.cost for matrix in matrices)


def test_under_zero_1_only_cut_matrices_travel() -> None:
    matrices = cut([64] * 12, 3, 1)
    owners = assign_owners(matrices, 3)
    assert owners == [0] * 4 + [1] * 4 + [2] * 4
    assert all(
        matrix.partition.is_whole_on(owner) for matrix, owner in zip(matrices, owners, strict=True)
    )
    (cut_one,) = cut([90], 4, 1)  # 23, 23, 23 and 21 elements
    assert assign_owners([cut_one], 5) == [0]


def test_a_fork_to_another_optimizer_starts_with_fresh_moments_and_says_so() -> None:
    from raymill.engine.start import fork

    def start(before: str, now: str) -> Any:
        manifest = SimpleNamespace(config={"optim.name": before}, updates={"": 7}, step=9)
        job = SimpleNamespace(optim=SimpleNamespace(name=now), run=SimpleNamespace(from_="base@9"))
        return fork(SimpleNamespace(manifest=manifest), SimpleNamespace(job=job))  # type: ignore[arg-type]

    kept, fresh = start("adamw", "adamw"), start("adamw", "muon")
    assert (kept.keeps_moments, kept.updates(""), kept.messages) == (True, 7, ())
    assert (fresh.keeps_moments, fresh.updates("")) == (False, 0)
    assert "base@9 was trained with adamw" in fresh.messages[0]
    assert "they start at zero" in fresh.messages[0]
