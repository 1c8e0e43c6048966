"""`--help` that teaches: what the job does, its groups, the keys people change, examples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from raymill.config.compose import groups, load
from raymill.config.tree import flatten


@dataclass(frozen=True)
class Topic:
    """What `--help` says about one job."""

    summary: str
    groups: tuple[str, ...]
    keys: tuple[tuple[str, str], ...]  # (key, what it does)
    examples: tuple[tuple[str, str], ...]  # (command's overrides, what it does)
    writes: str


_DATA_KEYS = (
    ("data.path", "folders and globs to read (with data=files)"),
    ("data.text_column", "column or field that holds the text"),
    ("data.sequence_length", "predictions a row"),
    ("data.validation.fraction", "share of the files held out"),
    ("data.validation.path", "or a held-out set of your own"),
    ("data.max_bad_fraction", "undecodable input tolerated"),
    ("tokenizer.vocab_size", "size of the vocabulary to train"),
    ("tokenizer.path", "or a tokenizer that exists"),
    ("run.seed", "of the held-out split"),
    ("storage.root", "where everything is written"),
)
_TRAIN_KEYS = (
    ("train.steps", "optimizer steps (or train.tokens; the other null)"),
    ("train.global_batch", "rows a step, over all workers"),
    ("train.micro_batch", "rows a forward pass; accumulation follows"),
    ("optim.learning_rate", "peak learning rate"),
    ("run.name", "the same name resumes; null: from the configuration"),
    ("run.workers", "workers, one GPU each with cluster.gpu=true"),
    ("train.precision", "fp32 or bf16"),
    ("checkpoint.every", "steps between checkpoints"),
    ("evaluation.every", "steps between held-out evaluations"),
    ("storage.root", "where everything is written"),
)
_TRAIN_GROUPS = (
    "arch", "data", "tokenizer", "optim", "schedule", "zero", "run", "cluster", "tracking",
    "experiment",
)  # fmt: skip
TOPICS = {
    "prepare": Topic(
        "Text → a tokenizer and tokenized, checksummed Parquet shards.",
        ("data", "tokenizer", "cluster", "experiment"),
        _DATA_KEYS,
        (
            ("", "the documentation and source of the running Python"),
            ("data=files data.path=texts/ tokenizer.vocab_size=32000", "your own text"),
            (
                "data=files data.path=a.jsonl.zst tokenizer=existing tokenizer.path=hf_folder",
                "with a tokenizer that exists",
            ),
        ),
        "storage.root/data/<data.name>-<tokenizer.name>-<digest>/",
    ),
    "pretrain": Topic(
        "Prepared shards → a base model: checkpointed, tracked, exported, registered.",
        _TRAIN_GROUPS,
        _TRAIN_KEYS,
        (
            ("experiment=demo", "a small model in minutes on two CPU cores"),
            (
                "arch=llama3_8b zero=stage3 cluster=h100 run.workers=64 train.precision=bf16 "
                "train.global_batch=1024 dry_run=true",
                "what a big one would need",
            ),
            ("run.name=demo train.steps=2000", "run `demo` again, for longer: it resumes"),
        ),
        "storage.root/runs/<run.name>/, storage.root/mlflow.db",
    ),
    "pipeline": Topic(
        "Every stage of a model's life in one Ray session, skipping what is finished.",
        _TRAIN_GROUPS,
        (("stages", "which stages, in order"), *_TRAIN_KEYS[:9]),
        (
            ("experiment=demo", "text → tokenizer → shards → model, in minutes"),
            ("experiment=tiny", "the same in seconds, to try things out"),
            ("data=files data.path=texts/ train.steps=5000", "on your own text"),
        ),
        "storage.root/data/, storage.root/runs/<run.name>/, storage.root/mlflow.db",
    ),
    "generate": Topic(
        "A model continues a prompt, from prompt=, prompt_file= or standard input.",
        ("tracking",),
        (
            ("model", "models:/name@alias, models:/name/3 or a Hugging Face folder"),
            ("prompt", "taken exactly as typed"),
            ("prompt_file", "a file that holds the prompt"),
            ("max_new_tokens", "tokens to generate"),
            ("temperature", "0: always the likeliest token"),
            ("top_p", "sample from the likeliest tokens of this total probability"),
            ("seed", "the same seed gives the same text"),
            ("tracking.uri", "where the registry is"),
            ("storage.root", "or the root under which it lies"),
        ),
        (
            ("'prompt=def main('", "one continuation"),
            ("model=storage/runs/demo/export temperature=0", "from a folder, greedily"),
            ("max_new_tokens=64 < prompt.txt", "prompt from standard input"),
        ),
        "nothing",
    ),
}


_UNRESOLVED = {"run.name": None, "storage.root": "storage"}


def help_text(job: str) -> str:
    """The page that `python jobs/<job>.py --help` prints."""
    topic = TOPICS[job]
    defaults: dict[str, Any] = flatten(load(job, []))
    # As the files spell them, not as they were resolved for this folder.
    defaults |= {key: text for key, text in _UNRESOLVED.items() if key in defaults}
    available = groups()
    lines = [f"python jobs/{job}.py [group=choice ...] [key=value ...]", "", topic.summary, ""]
    lines.append("Groups, each a file conf/<group>/<choice>.yaml whose comments explain its keys:")
    lines += [f"  {name:<11}{', '.join(available[name])}" for name in topic.groups]
    lines += ["", "Keys people change (every key of every group can be set like this):"]
    width = max(len(key) for key, _ in topic.keys) + 2
    for key, text in topic.keys:
        shown = "" if key not in defaults else f" [{_spell(defaults[key])}]"
        lines.append(f"  {key:<{width}}{text}{shown}")
    if job != "generate":
        lines.append(f"  {'dry_run=true':<{width}}print what would be done, and exit")
    lines += ["", "Examples:"]
    for overrides, text in topic.examples:
        lines.append(f"  python jobs/{job}.py {overrides}".rstrip())
        lines.append(f"      {text}")
    lines += ["", f"Writes: {topic.writes}"]
    return "\n".join(lines)


def _spell(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return str(value)
