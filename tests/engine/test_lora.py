"""Adapters and frozen parameters under every ZeRO stage: training, checkpoints, and loading."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from data.chat_factory import chat_encoder, conversations, encoded, rows_of, write_parent
from engine.chat_probe import NEW_IDS, VOCAB, Case, spawn
from raymill.data.messages.tokenizer import chat_tokenizer
from raymill.data.store.rows import Rows
from raymill.data.text.control_tokens import ControlTokens
from raymill.errors import ConfigError
from raymill.model.export import save_model
from raymill.model.lazy import LazyModel
from raymill.model.parent import freeze, load_parent, plan_parent, with_adapters
from raymill.schema.sections import LoraConfig
from sections import plain

STEPS, SAVED, BATCH = 5, 3, 8


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # Large enough that ZeRO-3 really shares the embedding out (its threshold is 100,000 elements).
    return write_parent(tmp_path_factory.mktemp("parent"), hidden_size=400, intermediate_size=512)


@pytest.fixture(scope="module")
def steps(parent: Path) -> list[Rows]:
    chats = encoded(chat_encoder(parent), conversations(STEPS * BATCH))
    width = max(len(chat.ids) for chat in chats)
    return [
        rows_of(chats, [[i] for i in range(s * BATCH, (s + 1) * BATCH)], width)
        for s in range(STEPS)
    ]


EVERY = ((0, 0.0), (1, 0.0), (2, 0.0), (3, 0.0), (2, 5.0))


@pytest.mark.parametrize(
    ("world", "layouts"),
    [
        (1, ((1, 0.0), (3, 0.0))),
        pytest.param(1, EVERY, marks=pytest.mark.slow),
        pytest.param(2, EVERY, marks=pytest.mark.slow),
    ],
)
def test_adapters_train_alike_under_every_stage_and_resume_bit_exactly(
    parent: Path,
    steps: list[Rows],
    world: int,
    layouts: tuple[tuple[int, float], ...],
    tmp_path: Path,
) -> None:
    cases = [
        Case(
            str(parent), stage, lora_rank=4, save_at=SAVED, learning_rate=3e-3, neftune_alpha=noise
        )
        for stage, noise in layouts
    ]
    through = spawn(world, cases, steps, tmp_path)
    for case, report in zip(cases, through, strict=True):
        assert all("lora_" in n or "trainable_tokens" in n for n in report["trained"]), case
        assert any("trainable_tokens" in n for n in report["trained"]), "new tokens must be learned"
        assert report["still"] == [], f"never trained under ZeRO-{case.stage}"
        assert report["losses"][-1] < report["losses"][0]  # type: ignore[index]
        if not case.neftune_alpha:
            assert report["losses"] == pytest.approx(through[0]["losses"], rel=1e-4)
    again = spawn(world, [replace(case, resume=True, save_at=0) for case in cases], steps, tmp_path)
    for case, first, second in zip(cases, through, again, strict=True):
        assert second["identical"], case
        assert second["losses"] == first["losses"][SAVED:], case  # type: ignore[index]
        assert second["norms"] == first["norms"][SAVED:], case  # type: ignore[index]


def test_frozen_parameters_stay_and_are_not_in_the_checkpoint(
    parent: Path, steps: list[Rows], tmp_path: Path
) -> None:
    frozen = ("model.layers.0.*", "model.embed_tokens.*")
    cases = [
        Case(str(parent), stage, optimizer=optimizer, freeze=frozen, save_at=2)
        for optimizer in ("adamw", "muon")
        for stage in (0, 3)
    ]
    reports = spawn(1, cases, steps[:3], tmp_path)
    for report in reports:
        assert not any(".0." in name or "embed" in name for name in report["trained"])
        assert any("layers.1" in name for name in report["trained"])
        assert report["still"] == []
    for one, other in (reports[:2], reports[2:]):
        assert one["losses"] == pytest.approx(other["losses"], rel=1e-4)
    assert reports[0]["losses"][2] != pytest.approx(reports[2]["losses"][2], rel=1e-4)  # type: ignore[index]


def test_merging_is_checked_by_logits(parent: Path, tmp_path: Path) -> None:
    model = with_adapters(
        plan_parent(parent, VOCAB, NEW_IDS, "sdpa", 7), plain(LoraConfig, rank=4), NEW_IDS, 7
    ).whole()
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.05)
    ids = [np.random.default_rng(0).integers(1, VOCAB, 40).tolist()]
    with torch.no_grad():
        adapted = model(input_ids=torch.tensor(ids)).logits
    tokenizer = tmp_path / "tokenizer"
    chat_tokenizer(parent, "chatml", ()).save(tokenizer)
    saved = save_model(
        LazyModel(model), tokenizer, tmp_path / "export", precision="fp32",
        tokens=ControlTokens(None, 0, (258, 0)), probe_ids=ids, parent=parent,
    )  # fmt: skip
    assert saved.comparison.logit_difference < 1e-5
    assert saved.comparison.same_choice == 1.0
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "export")
    assert torch.allclose(merged(input_ids=torch.tensor(ids)).logits, adapted, atol=1e-4)
    assert merged.generation_config.eos_token_id == [258, 0]
    # And the adapter alone, on the parent with its new tokens, as any peft user would load it.
    base = load_parent(parent, VOCAB, NEW_IDS, "sdpa", 7)
    again = PeftModel.from_pretrained(base, tmp_path / "adapter")
    assert torch.allclose(again(input_ids=torch.tensor(ids)).logits, adapted, atol=1e-4)


def test_an_untied_output_learns_the_new_tokens_too(tmp_path: Path) -> None:
    untied = write_parent(tmp_path, tie_word_embeddings=False)
    model = with_adapters(
        plan_parent(untied, VOCAB, NEW_IDS, "sdpa", 7), plain(LoraConfig, rank=2), NEW_IDS, 7
    ).model
    trained = [n for n, p in model.named_parameters() if p.requires_grad and "trainable" in n]
    assert any("embed_tokens" in name for name in trained)
    assert any("lm_head" in name for name in trained)


def test_targets_and_patterns_that_match_nothing_are_refused(parent: Path) -> None:
    blueprint = plan_parent(parent, VOCAB, NEW_IDS, "sdpa", 7)
    model = blueprint.model
    with pytest.raises(ConfigError, match="nothing_like_it"):
        with_adapters(blueprint, plain(LoraConfig, rank=4, targets=("nothing_like_it",)), (), 7)
    with pytest.raises(ConfigError, match=r"'nope\.\*' matches no parameter"):
        freeze(model, ["nope.*"])
    with pytest.raises(ConfigError, match="nothing is left to train"):
        freeze(model, ["*"])


def test_new_tokens_start_at_the_mean_and_apart(parent: Path) -> None:
    plain = load_parent(parent, 257, (), "sdpa", 7)
    extended = load_parent(parent, VOCAB, NEW_IDS, "sdpa", 7)
    old = plain.get_input_embeddings().weight
    new = extended.get_input_embeddings().weight
    assert torch.equal(new[:257], old)
    for index in NEW_IDS:
        distance = (new[index] - old.mean(0)).norm() / old.std(0).norm()
        assert 0.01 < distance < 0.2
    assert not torch.equal(new[257], new[258])
    again = load_parent(parent, VOCAB, NEW_IDS, "sdpa", 7)
    assert torch.equal(again.get_input_embeddings().weight, new)
