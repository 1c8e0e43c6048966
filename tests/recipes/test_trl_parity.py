"""The same 30 steps of fine-tuning by TRL's SFTTrainer and by ours: model, data and order the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data.chat_factory import chat_encoder, conversations, encoded, rows_of, write_parent
from engine.chat_probe import NEW_IDS, VOCAB, Case, spawn
from raymill.data.messages.tokenizer import chat_tokenizer
from raymill.model.parent import load_parent
from raymill.objective.language_modeling import AssistantTokens

STEPS, BATCH = 30, 8
trl = pytest.importorskip("trl", reason="TRL is in the dev extra")


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_parent(tmp_path_factory.mktemp("parent"))


@pytest.fixture(scope="module")
def trainer(parent: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """TRL, unpacked, loss on the assistant's tokens alone, in the order of the data."""
    from datasets import Dataset
    from torch.utils.data import SequentialSampler
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("trl")
    chat_tokenizer(parent, "chatml", ()).save(folder / "tokenizer")

    class InOrder(trl.SFTTrainer):  # type: ignore[misc, name-defined]
        def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
            return SequentialSampler(self.train_dataset)

    messages = [list(chat.messages) for chat in conversations(STEPS * BATCH)]
    return InOrder(
        model=load_parent(parent, VOCAB, NEW_IDS, "sdpa", 7),
        processing_class=AutoTokenizer.from_pretrained(folder / "tokenizer"),
        train_dataset=Dataset.from_dict({"messages": messages}),
        args=trl.SFTConfig(
            output_dir=str(folder), per_device_train_batch_size=BATCH, max_steps=STEPS,
            learning_rate=1e-3, lr_scheduler_type="constant", warmup_steps=0, weight_decay=0.0,
            adam_beta1=0.9, adam_beta2=0.95, adam_epsilon=1e-8, max_grad_norm=1.0,
            optim="adamw_torch", assistant_only_loss=True, packing=False, max_length=None,
            logging_steps=1, report_to="none", save_strategy="no", bf16=False, use_cpu=True,
            gradient_checkpointing=False, disable_tqdm=True, seed=7, dataset_num_proc=None,
        ),
    )  # fmt: skip


def test_first_gradient_and_thirty_losses_agree(parent: Path, trainer: Any, tmp_path: Path) -> None:
    chats = encoded(chat_encoder(parent), conversations(STEPS * BATCH))
    width = max(len(chat.ids) for chat in chats)
    steps = [
        rows_of(chats, [[i] for i in range(s * BATCH, (s + 1) * BATCH)], width)
        for s in range(STEPS)
    ]
    # TRL learns from exactly the tokens that we learn from.
    theirs = trainer.train_dataset
    for chat, ids, labels in zip(chats, theirs["input_ids"], theirs["labels"], strict=True):
        assert chat.ids.tolist() == list(ids)
        assert chat.learned.tolist() == [label != -100 for label in labels]

    batch = next(iter(trainer.get_train_dataloader()))
    count = int((batch["labels"][:, 1:] != -100).sum())
    their_loss = trainer.compute_loss(trainer.model, dict(batch), num_items_in_batch=count)
    their_loss.backward()
    ours = load_parent(parent, VOCAB, NEW_IDS, "sdpa", 7)
    objective = AssistantTokens(ours.get_output_embeddings())
    assert objective.weight(steps[0]) == count
    (objective.losses(ours, steps[0], torch.device("cpu")).sum() / count).backward()
    gradients = [
        torch.cat([p.grad.flatten().double() for _, p in sorted(m.named_parameters())])
        for m in (trainer.model, ours)
    ]
    cosine = torch.nn.functional.cosine_similarity(*gradients, dim=0).item()
    assert cosine >= 0.9999
    trainer.model.zero_grad()

    trainer.train()
    expected = np.array([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    cases = [Case(str(parent), stage=0, micro_batch=8), Case(str(parent), stage=2, micro_batch=2)]
    assert len(expected) == STEPS
    for report in spawn(1, cases, steps, tmp_path):
        found = np.array(report["losses"])
        assert expected[-1] < 0.9 * expected[0], "it must learn, or agreement means little"
        worst = float(np.max(np.abs(found - expected) / expected))
        print(f"cosine {cosine:.8f}, losses within {worst:.1e}")  # with pytest -s
        assert worst < 1e-3
