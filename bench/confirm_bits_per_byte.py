"""Confirmation of a run's held-out bits per byte by transformers alone, without importing Raymill.

    .venv/bin/python bench/confirm_bits_per_byte.py [run directory, default storage/runs/demo]

Reads the exported folder with AutoModelForCausalLM and the held-out shards with pyarrow.
"""

import json
import math
import sys
from pathlib import Path

import pyarrow.parquet as pq
import torch
from transformers import AutoModelForCausalLM


def main() -> int:
    run_dir = Path(sys.argv[1] if len(sys.argv) > 1 else "storage/runs/demo")
    summary = json.loads((run_dir / "summary.json").read_text())
    model = AutoModelForCausalLM.from_pretrained(summary["export"], local_files_only=True).eval()
    nats, size = 0.0, 0
    for path in sorted((Path(summary["data"][0]) / "validation").glob("*.parquet")):
        table = pq.read_table(path)
        size += sum(table["bytes"].to_pylist())
        for row in table["tokens"].to_pylist():
            ids = torch.tensor([row])
            with torch.no_grad():
                loss = model(input_ids=ids, labels=ids).loss
            nats += loss.item() * (len(row) - 1)
    measured = nats / math.log(2) / size
    reported = summary["figures"]["eval/bits_per_byte"]
    print(f"transformers alone: {measured:.5f} bits per byte; reported: {reported:.5f}")
    return int(abs(measured - reported) > 1e-3)


if __name__ == "__main__":
    sys.exit(main())
