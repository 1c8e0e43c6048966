"""The same 50 steps by a bare PyTorch loop and by the trainer, under every stage and batch split."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from engine.muon_reference import MuonReference
from engine.probe import (
    ARCH,
    LENGTH,
    SEED,
    VOCAB,
    Case,
    batches,
    lengths,
    spawn,
)
from raymill.model.build import build_model

STEPS = 50


def bare_losses(muon: bool = False) -> list[float]:
    """Train from the formulas alone, sharing the model's numbers, initial weights and data with Raymill."""
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCAB,
            hidden_size=ARCH.hidden_size,
            intermediate_size=ARCH.intermediate_size,
            num_hidden_layers=ARCH.layers,
            num_attention_heads=ARCH.heads,
            num_key_value_heads=ARCH.kv_heads,
            max_position_embeddings=ARCH.max_positions,
            rms_norm_eps=ARCH.norm_eps,
            tie_word_embeddings=True,
            bos_token_id=0,
            eos_token_id=0,
        )
    )
    model.load_state_dict(build_model(ARCH, VOCAB, 0, SEED).state_dict())
    references = {
        parameter: MuonReference(parameter.detach().numpy(), momentum=0.95, decay=0.1)
        for name, parameter in model.named_parameters()
        if muon and name.startswith("model.layers.") and parameter.dim() > 1
    }
    matrices = [p for p in model.parameters() if p.dim() > 1 and p not in references]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}],
        lr=3e-3,
        betas=(0.9, 0.95),
        eps=1e-8,
    )
    losses = []
    for step, (rows, length) in enumerate(zip(batches(STEPS), lengths(STEPS), strict=True), 1):
        rate = step / 5 if step <= 5 else 0.1 + 0.45 * (1 + math.cos(math.pi * (step - 5) / 45))
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * rate
        tokens = torch.tensor(rows.astype(np.int64))
        logits = model(tokens[:, :-1]).logits
        log_probabilities = torch.log_softmax(logits, dim=-1)
        picked = log_probabilities.gather(-1, tokens[:, 1:, None]).squeeze(-1)
        counts = torch.arange(LENGTH)[None, :] < torch.tensor(length)[:, None] - 1
        loss = -(picked * counts).sum() / counts.sum()
        model.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        for parameter, reference in references.items():
            assert parameter.grad is not None
            reference.step(parameter.grad.double().numpy(), 3e-3 * rate)
            parameter.data.copy_(torch.tensor(reference.weight))
        losses.append(loss.item())
    return losses


@pytest.fixture(scope="module")
def bare() -> np.ndarray:
    losses = np.array(bare_losses())
    assert losses[-1] < 0.7 * losses[0], "the probe must learn, or agreement means little"
    return losses


CASES = [Case(stage) for stage in (0, 1, 2, 3)]
# A few of the combinations in every run of the tests, each stage on one worker and on two among them; all of
# them take minutes.
FEW_OR_ALL = pytest.mark.parametrize(
    "every", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["few", "all"]
)


def worst(reports: dict[str, dict[str, object]], bare: np.ndarray) -> dict[str, float]:
    return {
        name: float(np.max(np.abs(np.array(report["losses"]) - bare) / bare))
        for name, report in reports.items()
    }


@FEW_OR_ALL
def test_one_worker_every_stage_and_split(bare: np.ndarray, tmp_path: Path, every: bool) -> None:
    splits = [Case(1, micro) for micro in (1, 2, 8)] + [Case(0, micro) for micro in (1, 8)]
    cases = CASES + splits if every else [Case(0, 8), Case(1, 1)]
    found = worst(spawn(1, cases, tmp_path), bare)
    assert len(found) == len(cases)
    assert max(found.values()) < 1e-4, found


@FEW_OR_ALL
def test_recomputation_and_offload_change_nothing(
    bare: np.ndarray, tmp_path: Path, every: bool
) -> None:
    cases = [Case(3, recompute=True), Case(2, offload="cpu")]
    if every:
        cases += [Case(1, recompute=True), Case(3, offload="cpu")]
    found = worst(spawn(1, cases, tmp_path), bare)
    assert len(found) == len(cases)
    assert max(found.values()) < 1e-4, found


@FEW_OR_ALL
def test_two_workers_every_stage(bare: np.ndarray, tmp_path: Path, every: bool) -> None:
    cases = [*CASES, Case(2, 1), Case(3, 2)] if every else [Case(0), Case(1), Case(2, 1), Case(3)]
    found = worst(spawn(2, cases, tmp_path), bare)
    assert len(found) == len(cases)
    assert max(found.values()) < 1e-4, found


@FEW_OR_ALL
def test_muon_under_every_stage_and_split(tmp_path: Path, every: bool) -> None:
    """Momentum is of whole steps for any number of micro-batches, and matrices are whole however they are
    cut."""
    bare = np.array(bare_losses(muon=True))
    assert bare[-1] < 0.7 * bare[0], "the probe must learn, or agreement means little"
    alone = [Case(stage, micro, optimizer="muon") for stage, micro in ((0, 8), (1, 2), (3, 1))]
    shared = [Case(stage, 1, optimizer="muon") for stage in (0, 1, 2, 3)]
    runs = ((1, alone), (2, [*shared, Case(3, 4, optimizer="muon")]))
    few = [Case(stage, 2, optimizer="muon") for stage in (1, 3)]
    for world, cases in runs if every else ((2, few),):
        found = worst(spawn(world, cases, tmp_path), bare)
        assert len(found) == len(cases)
        assert max(found.values()) < 1e-5, (world, found)
