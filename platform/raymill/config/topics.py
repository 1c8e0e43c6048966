"""Texts of every job's `--help`: its summary, groups, main keys and examples.

Keys are explained by the comments in `conf/`; only what isn't a key there is explained here.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Topic:
    """Text of `--help` for one job. `others` explains arguments that aren't keys of `conf/`; `examples` pairs
    the overrides of a command with its purpose."""

    summary: str
    groups: tuple[str, ...]
    keys: tuple[str, ...]
    examples: tuple[tuple[str, str], ...]
    writes: str
    others: tuple[tuple[str, str], ...] = ()


_TEXT_KEYS = (
    "data.path", "data.text_column", "data.sequence_length", "data.validation.fraction",
    "data.validation.path", "data.max_bad_fraction", "tokenizer.vocab_size", "tokenizer.path", "run.seed",
    "storage.root",
)  # fmt: skip
_TRAIN_KEYS = (
    "train.steps", "train.global_batch", "train.micro_batch", "optim.learning_rate", "run.name",
    "run.workers", "train.precision", "checkpoint.every", "evaluation.every",
)  # fmt: skip
_CHAT_KEYS = (
    "data.path", "data.format", "data.template", "data.train_on", "data.thinking", "data.sequence_length",
    "data.packing", "data.overlong", "data.validation.fraction", "data.max_bad_fraction",
)  # fmt: skip
_PAIR_KEYS = (
    "data.path", "data.format", "data.thinking", "data.template", "data.sequence_length",
    "data.validation.fraction", "data.max_bad_fraction",
)  # fmt: skip
_PROMPT_KEYS = (
    "data.path", "data.verifier", "data.template", "data.sequence_length", "data.validation.fraction",
)  # fmt: skip
_TUNE_GROUPS = ("data", "optim", "schedule", "zero", "run", "cluster", "tracking", "experiment")
_TRAIN_GROUPS = ("arch", "data", "tokenizer", *_TUNE_GROUPS[1:])
_PREPARE_GROUPS = ("data", "cluster", "tracking", "experiment")
_RUN_FOLDERS = "storage.root/runs/<run.name>/, storage.root/data/, storage.root/mlflow.db"
_DATA_FOLDER = "storage.root/data/<name>-<digest>/, quarantine.jsonl in it"
TOPICS = {
    "prepare": Topic(
        "Prepare text: train a tokenizer and write tokenized, checksummed Parquet shards.\n"
        "Messages are prepared by kind=chat, kind=preference and kind=prompts; kind=quality trains a\n"
        "classifier of text.",
        ("data", "data/cleaning", "data/deduplication", "tokenizer", "cluster", "experiment"),
        (*_TEXT_KEYS, "data.keep_rejects", "preview", "estimate"),
        (
            ("", "the documentation and source of the running Python"),
            ("data=files data.path=texts/ tokenizer.vocab_size=32000", "your own text"),
            (
                "data=files data.path=a.jsonl.zst tokenizer=existing tokenizer.path=hf_folder",
                "your own text with an existing tokenizer",
            ),
            (
                "data=files data.path=crawl/ data/cleaning=fineweb data/deduplication=near",
                "cleaned as FineWeb is, without near duplicates",
            ),
        ),
        "storage.root/data/<data.name>-<tokenizer.name>-<digest>/",
    ),
    "pretrain": Topic(
        "Train a base model on prepared shards: checkpointed, tracked, exported, registered.",
        _TRAIN_GROUPS,
        (*_TRAIN_KEYS, "storage.root"),
        (
            ("experiment=demo", "a small model in minutes on two CPU cores"),
            (
                "arch=llama3_8b zero=stage3 cluster=h100 run.workers=64 train.precision=bf16 "
                "train.global_batch=1024 dry_run=true",
                "the plan of a big one",
            ),
            (
                "run.name=longer run.from=demo@300 train.steps=2000",
                "continue `demo` from before its learning rate decays, for longer",
            ),
            ("run.name=muon run.from=demo@300 optim=muon", "fork it with another optimizer"),
        ),
        "storage.root/runs/<run.name>/, storage.root/mlflow.db",
    ),
    "prepare_chat": Topic(
        "Prepare conversations: write checked, tokenized, packed Parquet shards for a parent model.",
        _PREPARE_GROUPS,
        ("parent", *_CHAT_KEYS, "preview", "run.seed", "storage.root"),
        (
            ("kind=chat preview=5", "the embedded conversations, five of them shown"),
            ("kind=chat data.path=chats.jsonl", "your own, in any of four formats"),
            ("kind=chat data.path=b/*.parquet data.overlong=refuse", "cut nothing"),
            ("kind=chat data.path=a.jsonl data.template=chatml", "replace the parent's template"),
        ),
        _DATA_FOLDER,
    ),
    "sft": Topic(
        "Fine-tune a parent model on conversations, prepared first if need be, and register the assistant.",
        _TUNE_GROUPS,
        (
            "parent", *_CHAT_KEYS, "lora.rank", "freeze", "neftune_alpha", "evaluation.questions",
            *_TRAIN_KEYS, "storage.root",
        ),
        (
            ("", "the embedded conversations on models:/assistant@pretrained"),
            (
                "parent=models:/assistant@pretrained data.path=chats.jsonl",
                "your own conversations",
            ),
            ("data.path=chats.jsonl lora.rank=16 optim.learning_rate=2e-4", "only adapters"),
            ("data.path=chats.jsonl dry_run=true", "the plan"),
        ),
        _RUN_FOLDERS,
    ),
    "prepare_preference": Topic(
        "Prepare compared answers: write checked, tokenized Parquet shards of pairs for a parent model.",
        _PREPARE_GROUPS,
        ("parent", *_PAIR_KEYS, "preview", "run.seed", "storage.root"),
        (
            ("kind=preference data.path=pairs.jsonl preview=3", "prompt, chosen and rejected"),
            ("kind=preference data.path=hh.jsonl.gz data.format=hh", "dialogues as text"),
            (
                "kind=preference data.path=storage/rankings/rankings/preferences.parquet",
                "rankings by people",
            ),
        ),
        _DATA_FOLDER,
    ),
    "prepare_prompts": Topic(
        "Prepare prompts, with the references of their verifiers: write checked, tokenized Parquet\n"
        "shards for a parent model.",
        _PREPARE_GROUPS,
        ("parent", *_PROMPT_KEYS, "preview", "run.seed", "storage.root"),
        (
            ("kind=prompts", "the embedded questions"),
            ("kind=prompts data.path=sums.jsonl data.verifier=exact", "your own"),
            ("kind=prompts data.path=p.parquet preview=5", "five of them shown"),
        ),
        _DATA_FOLDER,
    ),
    "prepare_quality": Topic(
        "Train the classifier of quality that data.cleaning.quality uses: documents as you want them\n"
        "against documents as they come.",
        (),
        (
            "good", "raw", "name", "text_column", "documents", "held_out", "ngram", "characters", "seed",
            "storage.root",
        ),
        (
            ("kind=quality good=books/ raw=crawl/", "files, folders and globs"),
            ("kind=quality good=[wiki.parquet,papers/] raw=crawl/*.jsonl.zst", "several sources"),
            ("kind=quality good=books/ raw=crawl/ documents=100000", "more documents"),
        ),
        "storage.root/quality/<name>-<digest>.safetensors",
    ),
    "reward": Topic(
        "Train a reward model (Bradley–Terry) on compared answers, from a parent model, and register it.",
        _TUNE_GROUPS,
        (
            "parent", *_PAIR_KEYS, "center_rewards", "margin_scale", "lora.rank", *_TRAIN_KEYS,
            "storage.root",
        ),
        (
            ("data.path=pairs.jsonl", "on models:/assistant@sft"),
            ("data.path=storage/rankings/rankings/preferences.parquet", "rankings by people"),
            ("data.path=pairs.jsonl lora.rank=16 optim.learning_rate=1e-4", "adapters and a head"),
        ),
        _RUN_FOLDERS,
    ),
    "dpo": Topic(
        "Align a parent model on compared answers (DPO and its relatives), and register the assistant.",
        _TUNE_GROUPS,
        (
            "parent", *_PAIR_KEYS, "loss.name", "loss.beta", "loss.label_smoothing", "loss.reference",
            "lora.rank", *_TRAIN_KEYS, "storage.root",
        ),
        (
            ("data.path=pairs.jsonl", "on models:/assistant@sft"),
            ("data.path=pairs.jsonl lora.rank=16 optim.learning_rate=1e-5", "only adapters"),
            ("data.path=pairs.jsonl loss.name=simpo loss.beta=2", "without a reference"),
        ),
        "storage.root/runs/<run.name>/, storage.root/references/, storage.root/mlflow.db",
    ),
    "rlhf": Topic(
        "Align a parent model by rewards (PPO, GRPO and their relatives), and register the assistant.",
        ("algorithm", *_TUNE_GROUPS),
        (
            "parent", *_PROMPT_KEYS, "reward.functions", "reward.model", "rollout.group_size",
            "rollout.max_new_tokens", "rollout.actors", "algorithm.kl_coefficient", "lora.rank",
            *_TRAIN_KEYS, "storage.root",
        ),
        (
            (
                "reward.model=models:/assistant@reward 'reward.functions={}'",
                "what people prefer, by a reward model",
            ),
            ("data.path=sums.jsonl 'reward.functions={exact: 1.0}'", "answers that a function verifies"),
            ("algorithm=ppo reward.model=models:/assistant@reward", "with a critic"),
        ),
        _RUN_FOLDERS,
    ),
    "rank": Topic(
        "Serve a page on which people compare a model's answers, or write answers of their own.",
        ("data", "tracking", "experiment"),
        (
            "model", "data.path", "mode", "answers", "prompts", "annotators_per_item", "instructions",
            "judge", "port", "name", "export_only",
        ),
        (
            ("model=models:/assistant@sft data.path=prompts.jsonl", "two answers per prompt"),
            ("answers=4 annotators_per_item=2", "drag four into order; every item twice"),
            ("mode=write data.path=prompts.jsonl", "write the first conversations"),
            ("judge=answer_f1 judge_noise=0.1", "a synthetic judge, named as such"),
        ),
        "storage.root/rankings/<name>/",
    ),
    "pipeline": Topic(
        "Run every stage of a model's life in one Ray session, skipping finished ones.",
        _TRAIN_GROUPS,
        _TRAIN_KEYS,
        (
            ("experiment=demo", "text → tokenizer → shards → model → assistant, in minutes"),
            ("experiment=tiny", "the same in seconds, to try things out"),
            (
                "data=files data.path=texts/ train.steps=5000 sft.data.path=chats/",
                "on your own data",
            ),
        ),
        "storage.root/data/, storage.root/runs/<run.name>/, storage.root/mlflow.db",
        (
            ("stages", "Stages to run, in order [prepare, pretrain, sft, rank, reward, rlhf]."),
            ("sft.<key>", "Any key or group of jobs/sft.py, as in sft.train.steps=200."),
            ("rank.<key>", "Any key of jobs/rank.py; reward.<key> and rlhf.<key> likewise."),
            ("ask", "Question for the finished assistant; may be given more than once."),
        ),
    ),
    "audit": Topic(
        "Report what became of a run: its attempts and their ends, the samples it learned from, lost work,\n"
        "and whether every byte of its checkpoints is as it was committed.",
        (),
        ("run.name", "trace.sample", "trace.step", "trace.data", "trace.row", "storage.root"),
        (
            ("run.name=demo", "a run under storage/"),
            ("run.name=demo trace.step=120", "the documents that a step learned from"),
            ("trace.data=wiki-bpe-1a2b3c4d trace.row=7", "the documents of a row"),
            ("run.name=demo storage.root=/shared/raymill", "a run under another root"),
            ("run.name=demo-sft", "a run of any job"),
        ),
        "nothing; the exit code is 1 where something is wrong",
    ),
    "serve": Topic(
        "Serve models by OpenAI's API, with a page to talk to them at /, until Ctrl-C or SIGTERM.",
        ("cluster", "tracking"),
        (
            "model", "adapters", "host", "port", "serve.slots", "serve.queue", "serve.max_tokens",
            "serve.keys", "new_key", "serve.cors", "votes", "serve.engine", "serve.decoder",
            "serve.replicas", "serve.follow", "storage.root",
        ),
        (
            ("", "the aligned assistant on this machine"),
            ("model=storage/runs/demo/export port=8080", "from a folder"),
            ("'model=[models:/assistant@sft,models:/assistant@aligned]'", "two models side by side"),
            ("serve.keys=keys.txt new_key=laptop", "an API key, printed once"),
            ("host=0.0.0.0 serve.keys=keys.txt", "for other machines; put a TLS proxy in front of it"),
            ("serve.engine=ray serve.replicas=2 serve.follow=true", "replicas that follow the alias"),
        ),
        "storage.root/rankings/<votes>/",
    ),
    "chat": Topic(
        "Converse with a model, or let one that wasn't fine-tuned continue text: from prompt=, prompt_file=,\n"
        "standard input, or turn after turn at a terminal. With url=, the model answers behind an address.",
        ("tracking",),
        (
            "model", "url", "api_key", "prompt", "prompt_file", "chat", "system", "max_new_tokens",
            "temperature", "top_p", "seed", "tracking.uri", "storage.root",
        ),
        (
            ("model=models:/assistant@sft", "a conversation at the terminal"),
            ("url=http://127.0.0.1:8000/v1", "the same with a server, such as jobs/serve.py"),
            ("'prompt=def main('", "one answer, or one continuation"),
            ("model=storage/runs/demo/export temperature=0", "from a folder, greedily"),
            ("max_new_tokens=64 < prompt.txt", "a prompt from standard input"),
        ),
        "nothing, but for /save",
    ),
}  # fmt: skip
