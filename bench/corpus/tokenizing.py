"""MB/s of tokenizing over `datasets.map(batched=True, num_proc=2)` and datatrove's DocumentTokenizer.

    .venv/bin/python bench/corpus/tokenizing.py --peers PEERS/bin/python [--megabytes 64] [--engine auto]

PEERS is an environment with `datatrove[processing,io]`, `datasets` and `transformers`. All sides read the same
JSON lines from the disk in two processes, with the same tokenizer, and write tokens to it: datasets an Arrow
cache, datatrove its .ds files (no shuffle, end of text added), Raymill its runs, and then the shards that the
documents are shuffled into, with their lineage. Imports are left out, as is Ray. CPU seconds are
of a side's processes; the sides take turns, and medians of the rounds are compared.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
FILES = 4
END = "<|endoftext|>"
SIDES = ("raymill", "datasets", "datatrove")


def write_corpus(folder: Path, megabytes: float) -> int:
    """Write files of JSON lines from the sources and texts of this environment; return the text's bytes."""
    left = int(megabytes * 1e6)
    files = [(folder / f"{number}.jsonl").open("w") for number in range(FILES)]
    total = 0
    paths = sorted(Path(sys.prefix).rglob("*"), key=lambda path: path.name)
    for number, path in enumerate(paths):
        if path.suffix not in (".py", ".md", ".rst", ".txt", ".pyi", ".h") or path.is_symlink():
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            continue
        size = len(text.encode())
        if size < 200 or size > 1 << 20:
            continue
        files[number % FILES].write(json.dumps({"text": text}) + "\n")
        total += size
        if total >= left:
            break
    for file in files:
        file.close()
    return total


def measured(work: Callable[[], object], cpu: Callable[[], float]) -> dict[str, float]:
    before, started = cpu(), time.perf_counter()
    work()
    return {"wall": time.perf_counter() - started, "cpu": cpu() - before}


def cpu_of_children() -> float:
    """CPU seconds of this process and of those that it has started and waited for."""
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def by_datasets(inputs: Path, tokenizer: Path, out: Path) -> dict[str, float]:
    import datasets
    from transformers import PreTrainedTokenizerFast

    datasets.disable_progress_bars()
    fast = PreTrainedTokenizerFast(tokenizer_file=str(tokenizer), eos_token=END)

    def work() -> None:
        files = [str(path) for path in sorted(inputs.glob("*.jsonl"))]
        rows = datasets.load_dataset("json", data_files=files, split="train", cache_dir=str(out))
        rows.map(
            lambda batch: {"input_ids": fast(batch["text"], add_special_tokens=False)["input_ids"]},
            batched=True, num_proc=2, remove_columns=["text"],
        )  # fmt: skip

    return measured(work, cpu_of_children)


def by_datatrove(inputs: Path, tokenizer: Path, out: Path) -> dict[str, float]:
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.tokens import DocumentTokenizer
    from loguru import logger

    logger.remove()
    pipeline = [
        JsonlReader(str(inputs)),
        DocumentTokenizer(
            str(out / "tokens"), local_working_dir=str(out / "work"), save_filename="bench",
            tokenizer_name_or_path=str(tokenizer), eos_token=END, shuffle_documents=False,
        ),
    ]  # fmt: skip
    # Forked, since its forkserver would import everything again for each process.
    executor = LocalPipelineExecutor(
        pipeline, tasks=FILES, workers=2, logging_dir=str(out / "log"), skip_completed=False,
        start_method="fork",
    )  # fmt: skip
    return measured(executor.run, cpu_of_children)


def by_raymill(inputs: Path, tokenizer: Path, out: Path, engine: str) -> dict[str, float]:
    sys.path.insert(0, str(ROOT / "platform"))
    # Imported before the measurement, as on the other sides.
    import pyarrow.parquet  # noqa: F401
    import tiktoken  # noqa: F401
    import tokenizers  # noqa: F401

    from raymill.config import load
    from raymill.data import cluster_tasks
    from raymill.data.sources.planning import plan_units
    from raymill.data.store.split import TRAIN
    from raymill.data.text import prepare
    from raymill.data.text.steps import run_units

    size = max(path.stat().st_size for path in inputs.glob("*.jsonl"))
    job: Any = load(
        "prepare",
        [
            "data=files", f"data.path=[{inputs}]", "tokenizer=existing", f"tokenizer.path={tokenizer}",
            f"tokenizer.end_of_text={END}", f"tokenizer.engine={engine}", f"storage.root={out}",
            f"data.shard_input_bytes={size}", "data.sequence_length=1024",
        ],
    )  # fmt: skip
    # The tasks of Ray are calls in two processes here, which end before their time is taken.
    cluster_tasks.parallel = in_processes  # type: ignore[assignment]
    units, folder = plan_units(job.data, job.seed), prepare.job_folder(job)

    def work() -> None:
        folder.mkdir(parents=True)
        identity = prepare._tokenizer(job, units, folder)
        settings = prepare._settings(job, units, folder, identity)
        results = run_units(units, settings, 2)
        shards = prepare._train_shards(job, settings, results, 2)
        assert sum(one.shard.tokens for one in shards), f"there is a {TRAIN} split"

    return measured(work, cpu_of_children)


def in_processes(
    function: Callable[[Any, Any], Any], items: Iterable[Any], *, shared: Any, tasks: int
) -> Iterator[Any]:
    """Do the work of `cluster_tasks.parallel` in forked processes."""
    with ProcessPoolExecutor(tasks, mp_context=get_context("fork")) as pool:
        yield from pool.map(partial(_called, function, shared), items)


def _called(function: Callable[[Any, Any], Any], shared: Any, item: Any) -> Any:
    return function(item, shared)


def train_tokenizer(inputs: Path, file: Path, vocab_size: int) -> None:
    """Train GPT-2's kind of tokenizer on a part of the corpus."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[END], show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )  # fmt: skip
    with (inputs / "0.jsonl").open() as lines:
        texts = [json.loads(line)["text"] for line, _ in zip(lines, range(1500), strict=False)]
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.save(str(file))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peers", help="Python of the peers' environment")
    parser.add_argument("--megabytes", type=float, default=64)
    parser.add_argument("--vocab", type=int, default=32_000)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--side", choices=SIDES, help="one side, in this process: IN TOKENIZER OUT")
    parser.add_argument("paths", nargs="*", type=Path)
    arguments = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    if arguments.side == "raymill":
        result = by_raymill(*arguments.paths, arguments.engine)
    elif arguments.side is not None:
        result = {"datasets": by_datasets, "datatrove": by_datatrove}[arguments.side](
            *arguments.paths
        )
    if arguments.side is not None:
        print(json.dumps(result))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        inputs, tokenizer = folder / "in", folder / "tokenizer.json"
        inputs.mkdir()
        megabytes = write_corpus(inputs, arguments.megabytes) / 1e6
        train_tokenizer(inputs, tokenizer, arguments.vocab)
        rates: dict[str, list[tuple[float, float]]] = {side: [] for side in SIDES}
        for _ in range(arguments.rounds):
            for side in SIDES:
                python = sys.executable if side == "raymill" else arguments.peers
                out = folder / side
                command = [
                    python, __file__, "--side", side, "--engine", arguments.engine,
                    str(inputs), str(tokenizer), str(out),
                ]  # fmt: skip
                ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
                found = json.loads(ended.stdout.splitlines()[-1])
                rates[side].append((megabytes / found["cpu"], megabytes / found["wall"]))
                shutil.rmtree(out, ignore_errors=True)
    medians = {
        side: [statistics.median(values) for values in zip(*pairs, strict=True)]
        for side, pairs in rates.items()
    }
    print(f"tokenizing {megabytes:.1f} MB of text, two processes, engine {arguments.engine}")
    for side, (per_cpu, per_second) in medians.items():
        over = [
            ours / theirs for ours, theirs in zip(medians["raymill"], medians[side], strict=True)
        ]
        print(
            f"  {side:<10}{per_cpu:6.2f} MB per CPU-second, {per_second:6.2f} MB/s"
            + ("" if side == "raymill" else f"; Raymill over it: {over[0]:.1f} and {over[1]:.1f}")
        )


if __name__ == "__main__":
    main()
