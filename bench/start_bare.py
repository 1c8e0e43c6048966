"""Baseline of bench/start.py: a bare loop to its first optimizer step, started by `torchrun`.

torchrun --nproc-per-node 1 bench/start_bare.py PREPARED_FOLDER
"""

import sys
import time
from pathlib import Path

import deepspeed
import pyarrow.parquet as pq
import torch
from transformers import LlamaConfig, LlamaForCausalLM

# The same as in experiment=tiny with the data of bench/start.py.
LENGTH, VOCAB, ROWS, MICRO = 64, 300, 8, 4


def main() -> None:
    shard = sorted(Path(sys.argv[1], "train").rglob("*.parquet"))[0]
    tokens = pq.ParquetFile(shard).read_row_group(0).column("tokens").to_pylist()[:ROWS]
    batch = torch.tensor(tokens, dtype=torch.long)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCAB, hidden_size=48, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, intermediate_size=96, max_position_embeddings=LENGTH,
        )
    )  # fmt: skip
    engine, _, _, _ = deepspeed.initialize(
        model=model,
        optimizer=torch.optim.AdamW(model.parameters(), lr=3e-3),
        config={
            "train_batch_size": ROWS,
            "train_micro_batch_size_per_gpu": MICRO,
            "zero_optimization": {"stage": 1},
            "zero_force_ds_cpu_optimizer": False,
            "gradient_clipping": 1.0,
        },
    )
    for rows in batch.split(MICRO):
        loss = engine(input_ids=rows, labels=rows, use_cache=False).loss
        engine.backward(loss)
        engine.step()
    assert engine.global_steps == 1
    print(f"first step {time.time():.4f}", flush=True)


if __name__ == "__main__":
    main()
