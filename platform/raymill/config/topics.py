"""Every job in the words of its `--help`: what it does, its groups, the keys people change, examples."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Topic:
    """Text of `--help` about one job."""

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
    ("storage.root", "where everything is written: a folder, or s3://, gs://, az://"),
)


def _train_keys(samples: str, passed: str) -> tuple[tuple[str, str], ...]:
    """Keys of every training; `samples` are what a step draws, `passed` what a forward pass is given."""
    return (
        ("train.steps", "optimizer steps (or train.tokens; the other null)"),
        ("train.global_batch", f"{samples} a step, over all workers"),
        ("train.micro_batch", f"{passed} a forward pass; accumulation follows"),
        ("optim.learning_rate", "peak learning rate"),
        ("run.name", "the same name resumes; null: from the configuration"),
        (
            "run.workers",
            "workers, one GPU each with cluster.gpu=true; 2..8: as many as there is room for",
        ),
        ("train.precision", "fp32 or bf16"),
        ("checkpoint.every", "steps between checkpoints"),
        ("evaluation.every", "steps between held-out evaluations"),
        ("storage.root", "where everything is written: a folder, or s3://, gs://, az://"),
    )


_ROW_KEYS = _train_keys("rows", "rows")
_PAIR_TRAIN_KEYS = _train_keys("pairs", "pairs")
_TRAIN_GROUPS = (
    "arch", "data", "tokenizer", "optim", "schedule", "zero", "run", "cluster", "tracking",
    "experiment",
)  # fmt: skip
_CHAT_KEYS = (
    ("data.path", "files and folders of conversations"),
    ("data.format", "of the records; auto: told by their columns"),
    ("data.template", "auto: the parent's, or else chatml; chatml; brief; or a Jinja file"),
    ("data.train_on", "all or last of the assistant's turns"),
    ("data.thinking", "learn, mask or drop what the assistant thought"),
    ("data.sequence_length", "predictions a row"),
    ("data.packing", "several conversations a row"),
    ("data.overlong", "cut turns at the end that don't fit, or refuse"),
    ("data.validation.fraction", "share of the conversations held out"),
    ("data.max_bad_fraction", "unusable conversations tolerated"),
)
_TUNE_GROUPS = ("data", "optim", "schedule", "zero", "run", "cluster", "tracking", "experiment")
_PARENT = ("parent", "models:/name@alias, models:/name/3 or a Hugging Face folder")
_LORA = ("lora.rank", "0: all weights; above it: adapters of this rank")
_PAIR_KEYS = (
    ("data.path", "files and folders of compared answers"),
    ("data.format", "pairs, hh or rankings; auto: told by their columns"),
    ("data.thinking", "learn, mask or drop what the assistant thought"),
    ("data.template", "auto: the parent's, or else chatml; chatml; brief; or a Jinja file"),
    ("data.sequence_length", "predictions of one answer with its prompt"),
    ("data.validation.fraction", "share of the prompts held out"),
    ("data.max_bad_fraction", "unusable records tolerated"),
)
_PROMPT_KEYS = (
    ("data.path", "files and folders of prompts"),
    ("data.verifier", "reward function of prompts that name none themselves"),
    ("data.template", "auto: the parent's, or else chatml; chatml; brief; or a Jinja file"),
    ("data.sequence_length", "tokens of a prompt"),
    ("data.validation.fraction", "share of the prompts held out"),
)
TOPICS = {
    "prepare": Topic(
        "Text → a tokenizer and tokenized, checksummed Parquet shards. Messages: kind=chat, preference, "
        "prompts.",
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
        _ROW_KEYS,
        (
            ("experiment=demo", "a small model in minutes on two CPU cores"),
            (
                "arch=llama3_8b zero=stage3 cluster=h100 run.workers=64 train.precision=bf16 "
                "train.global_batch=1024 dry_run=true",
                "what a big one would need",
            ),
            (
                "run.name=longer run.from=demo@300 train.steps=2000",
                "go on with `demo` from before its learning rate decays, for longer",
            ),
            ("run.name=muon run.from=demo@300 optim=muon", "a fork of it, by another optimizer"),
        ),
        "storage.root/runs/<run.name>/, storage.root/mlflow.db",
    ),
    "prepare_chat": Topic(
        "Conversations → checked, tokenized, packed Parquet shards for a parent model.",
        ("data", "cluster", "tracking", "experiment"),
        (
            ("parent", "whose tokenizer and chat template are used"),
            *_CHAT_KEYS,
            ("preview", "conversations shown as the model will see them"),
            ("run.seed", "of the held-out split and the packing"),
            ("storage.root", "where everything is written: a folder, or s3://, gs://, az://"),
        ),
        (
            ("kind=chat preview=5", "the embedded conversations, five of them shown"),
            ("kind=chat data.path=chats.jsonl", "your own, in any of four formats"),
            ("kind=chat data.path=b/*.parquet data.overlong=refuse", "nothing is cut"),
            ("kind=chat data.path=a.jsonl data.template=chatml", "not the parent's template"),
        ),
        "storage.root/data/<name>-<digest>/, quarantine.jsonl in it",
    ),
    "sft": Topic(
        "Conversations and a parent model → a registered assistant. Prepares the data if need be.",
        _TUNE_GROUPS,
        (
            _PARENT,
            *_CHAT_KEYS,
            ("lora.rank", "0: all weights; above it: adapters of this rank"),
            ("freeze", "patterns of parameters that aren't trained"),
            ("neftune_alpha", "noise on embeddings while training"),
            ("evaluation.questions", "held-out questions answered and scored"),
            *_ROW_KEYS,
        ),
        (
            ("", "the embedded conversations on models:/assistant@pretrained"),
            ("parent=models:/assistant@pretrained data.path=chats.jsonl", "your own"),
            ("data.path=chats.jsonl lora.rank=16 optim.learning_rate=2e-4", "adapters alone"),
            ("data.path=chats.jsonl dry_run=true", "the plan"),
        ),
        "storage.root/runs/<run.name>/, storage.root/data/, storage.root/mlflow.db",
    ),
    "prepare_preference": Topic(
        "Compared answers → checked, tokenized Parquet shards of pairs for a parent model.",
        ("data", "cluster", "tracking", "experiment"),
        (
            ("parent", "whose tokenizer and chat template are used"),
            *_PAIR_KEYS,
            ("preview", "pairs shown as the model will see them"),
            ("run.seed", "of the held-out split"),
            ("storage.root", "where everything is written: a folder, or s3://, gs://, az://"),
        ),
        (
            ("kind=preference data.path=pairs.jsonl preview=3", "prompt, chosen and rejected"),
            ("kind=preference data.path=hh.jsonl.gz data.format=hh", "dialogues as text"),
            (
                "kind=preference data.path=storage/rankings/rankings/preferences.parquet",
                "what people ranked",
            ),
        ),
        "storage.root/data/<name>-<digest>/, quarantine.jsonl in it",
    ),
    "prepare_prompts": Topic(
        "Prompts, with what a verifier needs → checked, tokenized Parquet shards for a parent model.",
        ("data", "cluster", "tracking", "experiment"),
        (
            ("parent", "whose tokenizer and chat template are used"),
            *_PROMPT_KEYS,
            ("preview", "prompts shown as the model will see them"),
            ("run.seed", "of the held-out split"),
            ("storage.root", "where everything is written: a folder, or s3://, gs://, az://"),
        ),
        (
            ("kind=prompts", "the embedded questions"),
            ("kind=prompts data.path=sums.jsonl data.verifier=exact", "your own"),
            ("kind=prompts data.path=p.parquet preview=5", "five of them shown"),
        ),
        "storage.root/data/<name>-<digest>/, quarantine.jsonl in it",
    ),
    "reward": Topic(
        "Compared answers and a parent model → a registered reward model (Bradley–Terry).",
        _TUNE_GROUPS,
        (
            _PARENT,
            *_PAIR_KEYS,
            ("centring", "pulls rewards towards a mean of 0"),
            ("margin_scale", "of the margins that the data states"),
            _LORA,
            *_PAIR_TRAIN_KEYS,
        ),
        (
            ("data.path=pairs.jsonl", "on models:/assistant@sft"),
            ("data.path=storage/rankings/rankings/preferences.parquet", "what people ranked"),
            ("data.path=pairs.jsonl lora.rank=16 optim.learning_rate=1e-4", "adapters and a head"),
        ),
        "storage.root/runs/<run.name>/, storage.root/data/, storage.root/mlflow.db",
    ),
    "dpo": Topic(
        "Compared answers and a parent model → a registered, aligned assistant (DPO and its kin).",
        _TUNE_GROUPS,
        (
            _PARENT,
            *_PAIR_KEYS,
            ("loss.name", "dpo, ipo, simpo or orpo"),
            ("loss.beta", "how dear it is to leave the reference"),
            ("loss.label_smoothing", "share of the pairs that are the wrong way round (cDPO)"),
            ("loss.reference", "cached: computed once; live: in every step"),
            _LORA,
            *_PAIR_TRAIN_KEYS,
        ),
        (
            ("data.path=pairs.jsonl", "on models:/assistant@sft"),
            ("data.path=pairs.jsonl lora.rank=16 optim.learning_rate=1e-5", "adapters alone"),
            ("data.path=pairs.jsonl loss.name=simpo loss.beta=2", "without a reference"),
        ),
        "storage.root/runs/<run.name>/, storage.root/references/, storage.root/mlflow.db",
    ),
    "rlhf": Topic(
        "Prompts, rewards and a parent model → a registered, aligned assistant (PPO, GRPO and their kin).",
        ("algorithm", *_TUNE_GROUPS),
        (
            _PARENT,
            *_PROMPT_KEYS,
            ("reward.functions", "name: weight; auto is the prompt's own verifier"),
            ("reward.model", "a reward model, as in models:/assistant@reward"),
            ("rollout.group", "answers a prompt"),
            ("rollout.max_new_tokens", "tokens of an answer"),
            ("rollout.actors", "processes that sample; 0: inside the first worker"),
            ("algorithm.kl_coefficient", "how dear it is to leave the reference"),
            _LORA,
            *_train_keys("prompts", "answers"),
        ),
        (
            ("reward.model=models:/assistant@reward 'reward.functions={}'", "what people prefer"),
            ("data.path=sums.jsonl 'reward.functions={exact: 1.0}'", "what can be verified"),
            ("algorithm=ppo reward.model=models:/assistant@reward", "with a critic"),
        ),
        "storage.root/runs/<run.name>/, storage.root/data/, storage.root/mlflow.db",
    ),
    "rank": Topic(
        "A page on which people compare a model's answers, or write answers of their own.",
        ("data", "tracking", "experiment"),
        (
            ("model", "whose answers are compared; or several"),
            ("data.path", "prompts to answer"),
            ("mode", "rank answers, or write them and review each other's"),
            ("answers", "how many are compared at once"),
            ("prompts", "at most so many"),
            ("annotators_per_item", "judgements an item gets"),
            ("instructions", "a text file that is shown to the annotators"),
            ("judge", "a synthetic judge instead of people: answer_f1, right_or_honest, length"),
            ("port", "of the page; 0: any that is free"),
            ("name", "judgements are kept in storage.root/rankings/<name>/"),
            ("export_only", "write the judgements as preference data, and exit"),
        ),
        (
            ("model=models:/assistant@sft data.path=prompts.jsonl", "two answers to each"),
            ("answers=4 annotators_per_item=2", "drag four into order; everything twice"),
            ("mode=write data.path=prompts.jsonl", "how first conversations come to be"),
            ("judge=answer_f1 judge_noise=0.1", "a stand-in that says so"),
        ),
        "storage.root/rankings/<name>/",
    ),
    "pipeline": Topic(
        "Every stage of a model's life in one Ray session, skipping what is finished.",
        _TRAIN_GROUPS,
        (
            ("stages", "which stages, in order [prepare, pretrain, sft, rank, reward, rlhf]"),
            *_ROW_KEYS[:9],
            ("sft.<key>", "any key or group of jobs/sft.py, as in sft.train.steps=200"),
            ("rank.<key>", "of jobs/rank.py; reward.<key>, rlhf.<key> likewise"),
            ("ask", "a question for the assistant in the end; may be given again"),
        ),
        (
            ("experiment=demo", "text → tokenizer → shards → model → assistant, in minutes"),
            ("experiment=tiny", "the same in seconds, to try things out"),
            (
                "data=files data.path=texts/ train.steps=5000 sft.data.path=chats/",
                "on your own data",
            ),
        ),
        "storage.root/data/, storage.root/runs/<run.name>/, storage.root/mlflow.db",
    ),
    "audit": Topic(
        "What became of a run: its attempts and what ended them, the samples it learned from, what was\n"
        "lost, and whether every byte of its checkpoints is what was committed.",
        (),
        (
            ("run.name", "the run to look at"),
            ("storage.root", "under which its folder lies"),
        ),
        (
            ("run.name=demo", "a run under storage/"),
            ("run.name=demo storage.root=/shared/raymill", "elsewhere"),
            ("run.name=demo-sft", "any job's"),
        ),
        "nothing; exit code 1 where something is not as it should be",
    ),
    "generate": Topic(
        "A model continues a prompt, or answers it if it was fine-tuned to: from prompt=, prompt_file=,\n"
        "standard input, or turn after turn at a terminal.",
        ("tracking",),
        (
            ("model", "auto: the furthest stage; models:/name@alias, /3, or a folder"),
            ("prompt", "taken exactly as typed"),
            ("prompt_file", "a file that holds the prompt"),
            ("chat", "null: converse if the model has a chat template; false: continue text"),
            ("system", "a system message for the conversation, taken exactly as typed"),
            ("max_new_tokens", "tokens to generate"),
            ("temperature", "0: always the likeliest token"),
            ("top_p", "sample from the likeliest tokens of this total probability"),
            ("seed", "the same seed gives the same text"),
            ("tracking.uri", "where the registry is"),
            ("storage.root", "or the root under which it lies"),
        ),
        (
            ("'prompt=def main('", "one continuation"),
            ("model=models:/assistant@sft", "a conversation at the terminal"),
            ("model=storage/runs/demo/export temperature=0", "from a folder, greedily"),
            ("max_new_tokens=64 < prompt.txt", "prompt from standard input"),
        ),
        "nothing",
    ),
}
