"""GRPO compared with TRL's GRPOTrainer: answers trained on per second, on the same CPU, in one run.

    make bench-models                                  # once
    .venv/bin/python bench/grpo.py                     # both sample with transformers
    .venv-vllm/bin/python bench/grpo.py --engine vllm  # both sample with vLLM; make vllm before

Same parent (of make bench-models), prompts, group size, answer length, temperature, reward (F1 of the
answer's words to the reference's) and sampling engine on both sides, fp32, no KL. TRL: 64 answers per step in
one forward pass, one update per step, `beta=0`, `loss_type="dapo"`; with vLLM `vllm_mode="colocate"`. Ours:
`jobs/rlhf.py` as a user runs it, including Ray, its actor and the digests of weight sync; 64 answers per step,
16 per forward pass. A step's rate is answers over seconds; results are medians over steps, turn by turn.
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
from itertools import pairwise
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "platform")]
PROMPTS, GROUP, TOKENS, STEPS, WARM_UP, TURNS = 8, 8, 48, 14, 4, 3


def prompts(count: int = 400) -> list[dict[str, Any]]:
    """Return questions of one turn from the embedded corpus, with their answers."""
    from raymill.data.demo.stdlib_conversations import conversations

    records = []
    for entry in conversations(0.04, 1234):
        messages = entry.record["messages"]
        if not entry.held_out and len(messages) == 2:
            answer = messages[1]["content"]
            records.append({"prompt": messages[0]["content"], "answer": answer})
    return records[:count]


def ours(parent: Path, engine: str) -> tuple[float, dict[str, float], float]:
    """Return (answers per second, share of a step's time by phase, seconds per weight sync)."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        lines = "".join(json.dumps(record) + "\n" for record in prompts())
        (root / "prompts.jsonl").write_text(lines)
        subprocess.run(
            [sys.executable, str(ROOT / "jobs" / "rlhf.py"), f"parent={parent}",
             f"storage.root={root}", f"data.path={root / 'prompts.jsonl'}", "tracking=none",
             f"rollout.engine={engine}", "reward.functions={answer_f1: 1.0}",
             f"rollout.group_size={GROUP}", "rollout.batch=64",
             f"rollout.max_new_tokens={TOKENS}", f"train.global_batch={PROMPTS}",
             "train.micro_batch=16", f"train.steps={STEPS}", "schedule.warmup_steps=1",
             "evaluation.rows=8", "evaluation.every=0", "evaluation.table_every=0",
             "checkpoint.every=1000", "run.name=bench", "data.sequence_length=128",
             "rollout.cpus_per_actor=2", "optim.learning_rate=1e-6"],
            check=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        event_log = (root / "runs" / "bench" / "metrics.jsonl").read_text().splitlines()
    steps = [event for event in map(json.loads, event_log) if event["kind"] == "step"][WARM_UP:]
    rate = statistics.median(PROMPTS * GROUP / event["perf/step_s"] for event in steps)
    total = sum(event["perf/step_s"] for event in steps)
    names = ("sync", "wait", "judge", "forward", "backward", "optimizer")
    shares = {n: sum(event[f"perf/{n}_s"] for event in steps) / total for n in names}
    shares["other"] = 1 - sum(shares.values())
    return rate, shares, statistics.median(event["perf/sync_s"] for event in steps)


def trl(parent: Path, engine: str) -> float:
    """Return the answers per second of TRL's GRPOTrainer, run in a separate process."""
    result = subprocess.run(
        [sys.executable, __file__, "trl", str(parent), "--engine", engine],
        check=True, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    return float(result.stdout.splitlines()[-1])


def train_with_trl(parent: Path, engine: str) -> None:
    """Train with TRL in this process, and print the answers per second."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    from raymill.evaluate.answers import token_f1

    cores = len(os.sched_getaffinity(0))
    torch.set_num_threads(cores)
    if engine == "vllm":
        from raymill.generate.engine.vllm_library import SETTINGS

        os.environ.update(SETTINGS)
    times: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            times.append(time.perf_counter())

    def reward(completions: list[Any], answer: list[str], **_: Any) -> list[float]:
        texts = [completion[0]["content"] for completion in completions]
        return [token_f1(text, right) for text, right in zip(texts, answer, strict=True)]

    rows = [
        {"prompt": [{"role": "user", "content": record["prompt"]}], "answer": record["answer"]}
        for record in prompts()
    ]
    with tempfile.TemporaryDirectory() as folder:
        trainer = GRPOTrainer(
            model=AutoModelForCausalLM.from_pretrained(parent),
            processing_class=AutoTokenizer.from_pretrained(parent),
            reward_funcs=reward,
            train_dataset=Dataset.from_list(rows),
            callbacks=[Clock()],
            args=GRPOConfig(
                output_dir=folder, per_device_train_batch_size=PROMPTS * GROUP,
                gradient_accumulation_steps=1, num_generations=GROUP, max_steps=STEPS,
                max_completion_length=TOKENS, temperature=1.0, beta=0.0, loss_type="dapo",
                learning_rate=1e-6, lr_scheduler_type="constant", use_cpu=True,
                use_vllm=engine == "vllm", vllm_mode="colocate", vllm_max_model_length=256,
                bf16=False, gradient_checkpointing=False, report_to="none", save_strategy="no",
                logging_steps=1000, disable_tqdm=True, optim="adamw_torch",
            ),
        )  # fmt: skip
        trainer.train()
    spent = [end - start for start, end in pairwise(times)]
    print(PROMPTS * GROUP / statistics.median(spent[WARM_UP - 1 :]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="?", choices=["all", "trl"], default="all")
    default = ROOT / "storage" / "runs" / "bench-sft" / "export"
    parser.add_argument("parent", nargs="?", type=Path, default=default)
    parser.add_argument("--engine", choices=["transformers", "vllm"], default="transformers")
    parser.add_argument("--turns", type=int, default=TURNS)
    arguments = parser.parse_args()
    parent, engine = arguments.parent, arguments.engine
    if arguments.what == "trl":
        train_with_trl(parent, engine)
        return
    ratios = []
    weights = sum(path.stat().st_size for path in parent.glob("*.safetensors"))
    for turn in range(arguments.turns):
        rate, shares, sync_s = ours(parent, engine)
        theirs = trl(parent, engine)
        ratios.append(rate / theirs)
        by_phase = ", ".join(f"{name} {share:.0%}" for name, share in shares.items())
        print(
            f"turn {turn + 1}: {rate:.1f} answers/s, TRL {theirs:.1f}: {ratios[-1]:.2f}", flush=True
        )
        print(f"        of a step: {by_phase}", flush=True)
        speed = weights / sync_s / 1e6
        print(
            f"        weights: {weights / 1e6:.1f} MB in {sync_s:.3f} s, {speed:.0f} MB/s",
            flush=True,
        )
    print(
        f"GRPO answers/s over TRL, sampled with {engine}: {statistics.median(ratios):.2f} "
        f"(median of {len(ratios)} turns)"
    )


if __name__ == "__main__":
    main()
