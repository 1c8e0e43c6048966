"""The trainer on a GPU: the losses of a bare loop on the CPU, bit-exact resuming, state from and to a CPU."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from engine.probe import Case, resumed, spawn
from engine.test_parity import bare_losses
from engine.test_state import check_every_layout
from objective.test_forward import END, TEXTS, conversations, documents
from raymill.data.store.rows import Rows
from raymill.engine.leaks import leaks
from raymill.objective.language_modeling import AssistantTokens, LanguageModeling
from raymill.objective.objective import Objective
from rl.rollout.tiny import tiny_model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]


def furthest(found: dict[str, dict[str, object]], reference: np.ndarray) -> float:
    """Return the largest relative difference of any loss."""
    return max(
        float(np.max(np.abs(np.array(report["losses"]) - reference) / reference))
        for report in found.values()
    )


def test_the_bare_loops_losses_under_every_stage(tmp_path: Path) -> None:
    reference = np.array(bare_losses())
    cases = [Case(stage) for stage in range(4)]
    cases += [
        Case(1, 1),
        Case(3, recompute=True),
        Case(2, offload="cpu"),
        Case(3, 8, offload="cpu"),
    ]
    far = furthest(spawn(1, cases, tmp_path / "fp32", gpu=True), reference)
    print(f"\nfp32 on the GPU against a bare loop on the CPU: {far:.1e}")
    assert far < 1e-3  # rounding alone: other kernels, 50 steps
    low = [Case(stage, precision="bf16") for stage in range(4)]
    far = furthest(spawn(1, low, tmp_path / "bf16", gpu=True), reference)
    print(f"bf16 on the GPU against it: {far:.1e}")
    assert far < 0.05


def test_resume_is_bit_exact_in_every_layout(tmp_path: Path) -> None:
    check_every_layout(1, tmp_path, gpu=True)


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2"])
def test_flash_attention_sees_what_masks_let_it_see(family: str) -> None:
    """Compare the real kernels with SDPA's masks, on packed documents and conversations of several rows."""
    pytest.importorskip("flash_attn")
    device = torch.device("cuda")
    model = tiny_model(family).to(device, torch.bfloat16)
    chats = conversations([TEXTS[0], TEXTS[1]], [TEXTS[3], TEXTS[1], TEXTS[0]])
    packed: list[tuple[Objective, Rows]] = [
        (LanguageModeling(END, document_mask=True), documents(TEXTS[:2], TEXTS[1:])),
        (AssistantTokens(model.get_output_embeddings()), chats),
    ]

    def losses(attention: str) -> torch.Tensor:
        model.set_attn_implementation(attention)
        assert max(leaks(model, model.get_output_embeddings(), True, device)) < 1e-3
        with torch.no_grad():
            return torch.cat([job.losses(model, rows, device) for job, rows in packed])

    torch.testing.assert_close(losses("flash_attention_2"), losses("sdpa"), rtol=0.02, atol=0.02)


@pytest.mark.parametrize("first", ["gpu", "cpu"])
def test_what_one_device_committed_the_other_loads(first: str, tmp_path: Path) -> None:
    cases = [Case(stage, steps=8, save_at=5) for stage in (0, 1, 3)]
    through = spawn(1, cases, tmp_path / "first", gpu=first == "gpu")
    (tmp_path / "second").mkdir()
    shutil.copytree(tmp_path / "first" / "checkpoints", tmp_path / "second" / "checkpoints")
    again = spawn(1, [resumed(case) for case in cases], tmp_path / "second", gpu=first == "cpu")
    for case in cases:
        assert again[case.name]["identical"], case.name
        expected = through[case.name]["losses"][5:]  # type: ignore[index]
        assert again[case.name]["losses"] == pytest.approx(expected, rel=1e-4), case.name
