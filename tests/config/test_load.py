"""Overrides that a user can type, and refusals that list every problem by name."""

from __future__ import annotations

import errno
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from raymill.config import load
from raymill.config.compose import groups
from raymill.config.entry import main
from raymill.config.help import help_text
from raymill.config.topics import TOPICS
from raymill.errors import ConfigError
from raymill.schema.identity import CHANGEABLE_ON_FORK, is_changeable
from raymill.schema.tree import digest, flatten

ROOT = Path(__file__).resolve().parents[2]


def problems(*overrides: str, job: str = "pretrain") -> str:
    with pytest.raises(ConfigError) as caught:
        load(job, overrides)
    return "\n".join(caught.value.problems)


def test_defaults_load_for_every_job() -> None:
    for topic in TOPICS:
        job, _, kind = topic.partition("_")
        overrides = ["data.path=pairs/"] if topic in ("prepare_preference", "reward", "dpo") else []
        overrides += ["run.name=x"] if topic == "audit" else []
        overrides += ["good=.", "raw=."] if topic == "prepare_quality" else []
        assert load(job, [*overrides, *([f"kind={kind}"] if kind else [])]) is not None


def test_values_groups_lists_and_numbers() -> None:
    job = load(
        "pretrain",
        ["arch=llama3_8b", "optim.learning_rate=3e-5", "data.path=[a.txt, b/*.jsonl]", "zero=stage3",
         "data=files", "run.from=base@20", "train.steps=null", "train.tokens=900000"],
    )  # fmt: skip
    assert job.arch.hidden_size == 4096
    assert job.optim.learning_rate == 3e-5
    assert job.data.path == ("a.txt", "b/*.jsonl")
    assert (job.zero.stage, job.run.from_, job.train.tokens) == (3, "base@20", 900000)


def test_text_is_taken_verbatim() -> None:
    prompt = "  a, {b: [c]} ${oc.env:SECRET} 'quoted' = \\n "
    assert load("chat", [f"prompt={prompt}"]).prompt == prompt
    assert load("prepare", ["data=files", "data.path=x/{a,b} c*.txt"]).data.path == (
        "x/{a,b} c*.txt",
    )


def test_all_problems_come_together_with_the_nearest_key() -> None:
    message = problems(
        "train.stepz=3", "arch=nanoo", "learning_rate=3", "train.micro_batch=abc",
        "train.global_batch=30", "schedule.decay_fraction=2", "optim.beta1=1",
    )  # fmt: skip
    for text in (
        "train.stepz: there is no such key; did you mean train.steps?",
        "arch=nanoo: arch is one of",
        "did you mean nano?",
        "learning_rate: there is no such key; did you mean optim.learning_rate?",
        "train.micro_batch='abc': expected a whole number",
        "train.global_batch=30: isn't workers x micro-batch x accumulation",
        "schedule.decay_fraction=2.0: must be from 0 to at most 1",
        "optim.beta1=1.0: must be at least 0 and below 1",
    ):
        assert text in message, message


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("optim.lrr", "did you mean optim.learning_rate?"),
        ("optim.lr", "did you mean optim.learning_rate?"),
        ("optim.weight_decy", "did you mean optim.weight_decay?"),
        ("optim.global_batc", "did you mean train.global_batch?"),
        ("optimm.beta1", "did you mean optim.beta1?"),
        ("optimm.weight_decy", "did you mean optim.weight_decay?"),
        ("optim.zzz", "optim has name, learning_rate, beta1, "),
        ("data.validation.fracton", "did you mean data.validation.fraction?"),
    ],
)
def test_a_key_that_is_not_there_is_answered_with_one_of_its_group(key: str, nearest: str) -> None:
    message = problems(f"{key}=1")
    assert f"{key}: there is no such key; {nearest}" in message
    if "did you mean" in nearest:
        assert known_leaf(nearest), "a key, and not its group"


def known_leaf(text: str) -> bool:
    """Tell whether the key that a message proposes can be set."""
    key = text.removeprefix("did you mean ").removesuffix("?")
    return key in flatten(load("pretrain", []))


@pytest.mark.parametrize(
    ("job", "step", "passed"),
    [
        ("pretrain", "rows", "rows"),
        ("sft", "rows", "rows"),
        ("reward", "pairs", "pairs"),
        ("dpo", "pairs", "pairs"),
        ("rlhf", "prompts", "answers"),
    ],
)
def test_help_names_what_a_batch_counts(job: str, step: str, passed: str) -> None:
    lines = {line.split()[0]: line for line in help_text(job).splitlines() if line.strip()}
    assert f" {step.capitalize()} per step, over all workers" in lines["train.global_batch"]
    assert f" {passed.capitalize()} per forward pass" in lines["train.micro_batch"]


def test_a_batch_that_cannot_be_divided_is_counted_in_its_own_unit() -> None:
    overrides = ("run.workers=3..4", "train.micro_batch=5", "data.path=x")
    assert "16 pairs per update can't be divided" in problems(*overrides, job="dpo")
    assert "answers per update can't be divided" in problems(*overrides, job="rlhf")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("hydra.run.dir=/tmp/x", "Hydra's own settings"),
        ("hydra/job_logging=none", "Hydra's own settings"),
        ("+hydra.job_logging=x", "Hydra's own settings"),
        ("arch._target_=os.system", "can't name objects"),
        ("data.mixture={_target_: numpy.load}", "can't name objects"),
        ("+stray=1", "can't be added or deleted"),
        ("++optim.lrr=1", "can't be added or deleted"),
        ("~train.steps=1", "can't be added or deleted"),
        ("arch@other=nano", "groups can't be moved"),
        ("train", "isn't an override"),
        ("--multirun", "isn't an override"),
        ("train.steps=1,2", "one value is expected"),
        ("storage.root=${oc.env:AWS_SECRET_ACCESS_KEY}", "are resolved"),
        ("storage.root=${oc.decode:x}", "are resolved"),
        ("storage.root=${nothing.here}", "can't be resolved"),
        ("run.name=../escape", "allowed are letters"),
        ("tracking.registered_model=m%2e", "allowed are letters"),
        ("run.from=base", "expected <run name>@<step>"),
        ("data.sequence_length=4096", "longer than arch.max_positions=1024"),
        ("arch.heads=5", "doesn't divide arch.hidden_size"),
        ("train.tokens=5", "give exactly one"),
        ("zero.offload_params=cpu", "needs zero.stage=3"),
        ("data=files", "data.path: data=files needs"),
        ("arch.attention=flash_attention_2", "needs cluster.gpu=true"),
        ("arch.attention=flash_attention_2", "its kernels compute only in 16 bits; set train.precision=bf16"),
        ("tokenizer.vocab_size=100", "at least 257"),
        ("cluster.device_memory_gib=0.01", "one worker needs about"),
        ("train.activation_checkpointing=1", "expected true or false"),
        ("optim.momentum=0.9", "is Muon's; choose optim=muon"),
    ],
)  # fmt: skip
def test_refusals(override: str, message: str) -> None:
    assert message in problems(override)


def test_muon_takes_adamws_rates_and_no_adapters() -> None:
    for job in ("pretrain", "sft", "reward", "dpo", "rlhf"):
        data = ["data.path=some.jsonl"] if job in ("reward", "dpo") else []
        muon, adamw = load(job, ["optim=muon", *data]).optim, load(job, data).optim
        assert (adamw.momentum, muon.momentum) == (None, 0.95)
        assert replace(muon, name="adamw", momentum=None) == adamw
    assert "momentum=None: Muon needs one" in problems("optim=muon", "optim.momentum=null")
    assert "momentum=1.0: Muon needs one" in problems("optim=muon", "optim.momentum=1")
    with pytest.raises(ConfigError, match=r"optim.name=muon, lora.rank=4: adapters are trained by"):
        load("sft", ["optim=muon", "lora.rank=4"])
    assert "Muon" not in problems("optim=muon", "zero=stage3", "zero.offload_optimizer=cpu")


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_optimizer_state_isnt_swapped_to_files(optimizer: str) -> None:
    offload = ("zero=stage3", "zero.offload_optimizer=nvme", "zero.nvme_path=/nvme", "dry_run=true")
    message = problems(f"optim={optimizer}", *offload)
    assert "checkpointed nor resumed; use zero.offload_optimizer=cpu" in message
    assert "zero.nvme_path" not in message
    assert "zero.nvme_path" in problems("zero=stage3", "zero.offload_params=nvme")


def test_the_precision_of_sums_over_workers_is_part_of_what_a_run_is() -> None:
    low = ("train.precision=bf16", "train.reduce_precision=bf16")
    assert load("pretrain", []).train.reduce_precision == "fp32"
    assert load("pretrain", ["train.precision=bf16"]).train.reduce_precision == "fp32"
    assert load("pretrain", low).train.reduce_precision == "bf16"
    assert "would only be rounded on their way" in problems("train.reduce_precision=bf16")
    assert not is_changeable("train.reduce_precision")
    assert is_changeable("train.reduce_precision", CHANGEABLE_ON_FORK)


def test_zero_3_offload_needs_to_know_the_memory() -> None:
    assert "cluster.host_memory_gib" in problems("zero=stage3_offload")
    assert load("pretrain", ["zero=stage3_offload", "cluster.host_memory_gib=8"])


def test_relative_storage_inside_a_submitted_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert "would vanish" in problems()
    assert load("pretrain", ["storage.root=/shared"]).storage.root == "/shared"


def test_allowed_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYMILL_STORAGE", "/from/environment")
    job = load("pretrain", ["storage.root=${oc.env:RAYMILL_STORAGE}/x"])
    assert job.storage.root == "/from/environment/x"


def test_a_run_is_named_by_what_it_is() -> None:
    name = load("pretrain", []).run.name
    assert (
        load("pretrain", ["train.steps=5000", "evaluation.every=7", "zero=stage3"]).run.name == name
    )
    assert load("pretrain", ["optim.learning_rate=1e-3"]).run.name != name
    assert is_changeable("evaluation.rows")
    assert not is_changeable("arch.layers")


def test_digest_does_not_depend_on_spelling() -> None:
    assert digest(load("pretrain", ["optim.learning_rate=1e-3"])) == digest(
        load("pretrain", ["optim.learning_rate=0.001"])
    )


def test_prepare_takes_the_training_jobs_overrides() -> None:
    overrides = ["experiment=tiny", "run.seed=5", "data.sequence_length=128"]
    prepared = load("pretrain", overrides).preparation()
    # Training asks for no estimate, so it has no price.
    assert replace(load("prepare", overrides), core_hour_price=0.0) == prepared


def test_the_option_surface_is_frozen() -> None:
    """Compare with the checked-in list, so that a changed default shows in review; regenerate it with
    `python tests/config/test_load.py`."""
    assert surface() == (Path(__file__).parent / "options.txt").read_text()


def surface() -> str:
    lines = []
    jobs = ("pretrain", "sft", "reward", "dpo", "rlhf", "rank", "pipeline", "chat", "audit")
    for job in (*jobs, "serve"):
        overrides = ["storage.root=/storage"]
        overrides += ["run.name=x"] if job not in ("chat", "rank", "serve") else []
        overrides += ["data.path=pairs/"] if job in ("reward", "dpo") else []
        flat = flatten(load(job, overrides))
        lines += [f"{job} {key} = {value!r}" for key, value in flat.items()]
    lines += [f"group {name}: {', '.join(choices)}" for name, choices in groups().items()]
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("topic", sorted(TOPICS))
def test_help_teaches(topic: str) -> None:
    job, _, kind = topic.partition("_")
    text = help_text(job, [f"kind={kind}"] if kind else [])
    assert len(text.splitlines()) <= 60
    assert text.count(f"python jobs/{job}.py") >= 4
    for key in TOPICS[topic].keys:
        assert key in text
    for line in text.splitlines():  # the examples must be true
        if line.startswith(f"  python jobs/{job}.py ") and "<" not in line and "'" not in line:
            load(job, line.split()[2:])


def test_a_refusal_takes_less_than_three_seconds_and_touches_nothing_heavy() -> None:
    code = (
        "import sys; sys.path.insert(0, 'platform'); from raymill.config.entry import main;"
        "code = main('pretrain', None, ['bad=1']);"
        "heavy = {'torch', 'ray', 'mlflow', 'transformers', 'deepspeed'} & set(sys.modules);"
        "print(code, sorted(heavy))"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "2 []"
    assert "bad: there is no such key" in done.stderr
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 3


def test_what_a_disk_refuses_is_a_sentence_and_a_bug_keeps_its_trace(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def full(_: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device", "/data/runs/base/job.yaml")

    def wrong(_: Any) -> int:
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", "nowhere")

    assert main("audit", full, ["run.name=one"]) == 1
    assert capsys.readouterr().err == "error: /data/runs/base/job.yaml: No space left on device\n"
    with pytest.raises(FileNotFoundError):
        main("audit", wrong, ["run.name=one"])


if __name__ == "__main__":
    (Path(__file__).parent / "options.txt").write_text(surface())
