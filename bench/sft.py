"""Fine-tuning compared with TRL's SFTTrainer, and preparation of conversations with `datasets.map`.

    make bench-models        # once
    python bench/sft.py

Same parent, same conversations, same CPU, turn by turn in one run; results are medians of the turns'
ratios, since machines are noisy. TRL: unpacked (its packing needs FlashAttention, and on a CPU
conversations see each other), padded to the longest of a batch, 32 conversations per forward pass, with as many
passes per step as give about the tokens of our step, loss on the assistant's tokens alone, AdamW, fp32.
Ours: `jobs/sft.py` as a user runs it, including Ray and its data pipeline.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "platform")]
TURNS, STEPS, WARM_UP = 3, 16, 4
PARENT = ROOT / "storage" / "runs" / "bench" / "export"
PREPARED_CONVERSATIONS = 4000


def records(count: int) -> list[dict[str, Any]]:
    """Return training conversations of the embedded corpus."""
    from raymill.data.demo.stdlib_conversations import conversations

    records = [entry.record for entry in conversations(0.04, 1234) if not entry.held_out]
    return records[:count]


def ours(packing: bool) -> float:
    """Return the assistant tokens per second of the job, as the median over its steps after the warm-up."""
    with tempfile.TemporaryDirectory() as folder:
        storage = Path(folder)
        (storage / "data").symlink_to(PARENT.parents[2] / "data")
        overrides = [
            "experiment=sft_bench", f"parent={PARENT}", f"storage.root={storage}", "tracking=none",
            f"train.steps={STEPS}", "evaluation.every=0", "evaluation.questions=0",
            "evaluation.forgetting=none", "checkpoint.every=1000", f"data.packing={packing}",
        ]  # fmt: skip
        # As many conversations per step as TRL's.
        if not packing:
            overrides += ["train.global_batch=128", "train.micro_batch=32"]
        subprocess.run(
            [sys.executable, str(ROOT / "jobs" / "sft.py"), *overrides],
            check=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        lines = (storage / "runs" / "bench-sft" / "metrics.jsonl").read_text().splitlines()
    steps = [event for event in map(json.loads, lines) if event["kind"] == "step"][WARM_UP:]
    return statistics.median(e["perf/tokens_per_s"] * e["perf/learned_share"] for e in steps)


def trl() -> float:
    """Return the assistant tokens per second of TRL's SFTTrainer, run in a separate process."""
    result = subprocess.run(
        [sys.executable, __file__, "trl"], check=True, capture_output=True, text=True
    )
    return float(result.stdout.splitlines()[-1])


def train_with_trl() -> None:
    """Train with TRL in this process, and print the assistant tokens per second."""
    import torch
    from datasets import Dataset
    from transformers import AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    from raymill.data.messages.tokenizer import chat_tokenizer, new_token_ids
    from raymill.model.parent import load_parent

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = chat_tokenizer(PARENT, "auto", ())
        tokenizer.save(Path(folder) / "tokenizer")
        new_ids = new_token_ids(PARENT, Path(folder) / "tokenizer")
        model = load_parent(PARENT, tokenizer.identity.vocab_size, new_ids, "sdpa", 1234)
        times: list[float] = []
        learned: list[int] = []

        class Clock(TrainerCallback):
            def on_step_end(self, *_: Any, **__: Any) -> None:
                times.append(time.perf_counter())

        class Counting(SFTTrainer):
            def training_step(self, model: Any, inputs: Any, *rest: Any, **options: Any) -> Any:
                learned.append(int((inputs["labels"][:, 1:] != -100).sum()))
                return super().training_step(model, inputs, *rest, **options)

        trainer = Counting(
            model=model,
            processing_class=AutoTokenizer.from_pretrained(Path(folder) / "tokenizer"),
            train_dataset=Dataset.from_list(records(PREPARED_CONVERSATIONS)),
            callbacks=[Clock()],
            args=SFTConfig(
                output_dir=folder, per_device_train_batch_size=32, gradient_accumulation_steps=4,
                max_steps=STEPS, learning_rate=1.5e-3, lr_scheduler_type="constant",
                assistant_only_loss=True, packing=False, max_length=257, optim="adamw_torch",
                weight_decay=0.0, logging_steps=1000, report_to="none", save_strategy="no",
                bf16=False, use_cpu=True, gradient_checkpointing=False, disable_tqdm=True,
            ),
        )  # fmt: skip
        trainer.train()
    per_step = [sum(learned[i : i + 4]) for i in range(0, len(learned), 4)]
    rates = [
        count / (end - start)
        for count, start, end in zip(per_step[1:], times, times[1:], strict=False)
    ]
    print(statistics.median(rates[WARM_UP:]))


def preparation() -> tuple[float, float]:
    """Return conversations per second, rendered, encoded and masked in one process: ours, `datasets.map`."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    from datasets import Dataset, disable_progress_bars
    from transformers import AutoTokenizer

    from raymill.data.messages.conversation import Conversation, read_conversation
    from raymill.data.messages.folder import load_chat_encoder
    from raymill.data.messages.tokenizer import chat_tokenizer

    disable_progress_bars()
    rows = records(PREPARED_CONVERSATIONS)
    with tempfile.TemporaryDirectory() as folder:
        chat_tokenizer(PARENT, "auto", ()).save(Path(folder))
        encoder = load_chat_encoder(Path(folder))
        assert encoder is not None, "the tokenizer was saved with a chat template"
        theirs = AutoTokenizer.from_pretrained(folder)
        started = time.perf_counter()
        for first in range(0, len(rows), 512):
            parsed = [read_conversation(row) for row in rows[first : first + 512]]
            encoder.encode([chat for chat in parsed if isinstance(chat, Conversation)])
        between = time.perf_counter()
        Dataset.from_list(rows).map(
            lambda row: theirs.apply_chat_template(
                row["messages"], tokenize=True, return_dict=True, return_assistant_tokens_mask=True
            ),
            load_from_cache_file=False,
        )
        ended = time.perf_counter()
    return len(rows) / (between - started), len(rows) / (ended - between)


def main() -> None:
    """Measure both sides in turns and print the results."""
    argparse.ArgumentParser(description=__doc__).parse_known_args()
    if not PARENT.exists():
        raise SystemExit(f"{PARENT} is missing: run make bench-models first")
    prepared = [preparation() for _ in range(TURNS)]
    ours_rate, theirs = (statistics.median(side) for side in zip(*prepared, strict=True))
    ratio = statistics.median(a / b for a, b in prepared)
    print(
        f"preparation  {ours_rate:,.0f} conversations/s; datasets.map {theirs:,.0f}; ratio {ratio:.2f}"
    )
    turns = []
    for number in range(1, TURNS + 1):
        turns.append((ours(packing=True), ours(packing=False), trl()))
        packed, unpacked, other = turns[-1]
        print(f"  turn {number}: {packed:,.0f}, {unpacked:,.0f}; TRL {other:,.0f}", flush=True)
    packed, unpacked, other = (statistics.median(side) for side in zip(*turns, strict=True))
    print(
        f"training     packed {packed:,.0f} assistant tokens/s, unpacked {unpacked:,.0f}; "
        f"TRL {other:,.0f}"
    )
    for name, side in (("packed", 0), ("unpacked", 1)):
        ratios = [turn[side] / turn[2] for turn in turns]
        print(
            f"             {name} over TRL {statistics.median(ratios):.2f} "
            f"({min(ratios):.2f}–{max(ratios):.2f})"
        )


if __name__ == "__main__":
    if sys.argv[1:2] == ["trl"]:
        train_with_trl()
    else:
        main()
