"""Fine-tuning as a user runs it: from a registered base model and a file of conversations to a registered
assistant that converses; stopped or killed, it resumes exactly."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from data.chat_factory import write_jsonl
from driver import job
from driver.conftest import Workshop
from driver.test_resume import losses, wait_for_no_orphans
from faults.injector import happened, with_faults

pytestmark = pytest.mark.integration
GRAINS = ("wheat", "rye", "oats", "barley")
COLOURS = ("red", "green", "blue", "white")
STEPS = 40
QUIET = ("tracking=none", "evaluation.questions=0", "evaluation.every=0", "evaluation.forgetting=none",
         f"train.steps={STEPS}", "checkpoint.every=6", "checkpoint.keep_every=30")  # fmt: skip


@pytest.fixture(scope="module")
def shop(workshop: Workshop) -> Workshop:
    """Prepare a workshop with a registered base model, and conversations in a file."""
    code, output = job.run(
        "pretrain", *workshop.overrides, "run.name=base", "train.steps=40", cwd=workshop.root
    )
    assert code == 0, output
    records = []
    for number in range(600):
        colour, grain = COLOURS[number % 4], GRAINS[(number * 7) % 4]
        question = f"What does the {colour} mill grind on day {number}?"
        answer = f"The {colour} mill grinds {grain}."
        if number % 9 == 0:
            question, answer = f"Is there a purple mill on day {number}?", "I don't know of it."
        records.append({"instruction": question, "output": answer})
    write_jsonl(workshop.root / "chats.jsonl", records)
    overrides = (
        f"data.path={workshop.root / 'chats.jsonl'}", "data.sequence_length=128",
        "data.row_group_rows=8", "data.validation.fraction=0.1", "train.global_batch=8",
        "train.micro_batch=4", "train.threads=1", "optim.learning_rate=3e-3", "schedule.warmup_steps=2",
    )  # fmt: skip
    return Workshop(workshop.root, overrides)


@pytest.fixture(scope="module")
def assistant(shop: Workshop) -> str:
    code, output = job.run(
        "sft", *shop.overrides, "run.name=tuned", "train.steps=60", "evaluation.every=30",
        "evaluation.questions=24", "evaluation.answer_tokens=24", cwd=shop.root,
    )  # fmt: skip
    assert code == 0, output
    return output


def test_what_it_says_and_leaves(shop: Workshop, assistant: str) -> None:
    for noise in (
        "Traceback",
        "Warning",
        "WARNING",
        "INFO",
        "ray::",
        "DeepSpeed",
        "Loading weights",
    ):
        assert noise not in assistant
    for text in ("to train on", "held-out loss", "end their turn", "refusal F1", "forgetting",
                 "as assistant@sft"):  # fmt: skip
        assert text in assistant, text
    run_dir = shop.run_dir("tuned")
    summary = json.loads((run_dir / "summary.json").read_text())
    figures = summary["figures"]
    assert summary["parent"] == "models:/assistant/1"
    assert figures["eval/loss"] < figures["eval/loss/before"]
    assert figures["answers/loss"] < figures["answers/loss_other_question"]
    assert {"answers/f1", "answers/exact", "forgetting/bits_per_byte", "answers/loss_plain",
            "yardstick/spelling_refusal_f1"} <= figures.keys()  # fmt: skip
    assert "refused" not in (run_dir / "report.html").read_text()
    table = json.loads(sorted((run_dir / "samples").glob("answers-*.json"))[-1].read_text())
    assert table["columns"] == ["question", "reference", "parent", "answer"]
    assert len(table["data"]) == 24


def test_the_version_has_its_lineage_and_the_table_is_in_mlflow(
    shop: Workshop, assistant: str
) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{shop.root / 'storage' / 'mlflow.db'}")
    version = client.get_model_version_by_alias("assistant", "sft")
    assert version.tags["raymill.parent"] == "models:/assistant/1"
    assert "raymill.refusal_f1" in version.tags
    assert int(client.get_model_version_by_alias("assistant", "pretrained").version) == 1
    names = [file.path for file in client.list_artifacts(version.run_id, "answers")]
    assert names == ["answers/answers-00000000.json", "answers/answers-00000060.json"]
    run = client.get_run(version.run_id).data
    assert json.loads(run.tags["mlflow.loggedArtifacts"])[0]["type"] == "table"
    metrics = run.metrics
    assert {"eval/loss", "answers/f1", "forgetting/bits_per_byte"} <= metrics.keys()


def test_it_converses_and_any_tool_reads_it(shop: Workshop, assistant: str) -> None:
    code, output = job.run(
        "chat", "prompt=What does the red mill grind on day 3?", "temperature=0",
        "max_new_tokens=24", cwd=shop.root,
    )  # fmt: skip
    assert code == 0, output
    assert "models:/assistant/2" in output, "the furthest stage answers"
    assert "<|im_" not in output
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = shop.run_dir("tuned") / "export"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    asked = [{"role": "user", "content": "What does the red mill grind on day 3?"}]
    ids = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_tensors="pt")
    ids = ids["input_ids"] if hasattr(ids, "keys") else ids
    generated = model.generate(ids, do_sample=False, max_new_tokens=24)[0, ids.shape[1] :]
    text = tokenizer.decode(generated, skip_special_tokens=True).strip()
    assert text == output.splitlines()[-1].strip()
    assert tokenizer.eos_token == "<|im_end|>"
    assert model.config.vocab_size == len(tokenizer)


def test_another_parent_is_refused_by_name(shop: Workshop, assistant: str) -> None:
    again = (*shop.overrides, "run.name=tuned", "train.steps=60", "evaluation.every=30",
             "evaluation.questions=24", "evaluation.answer_tokens=24")  # fmt: skip
    code, output = job.run("sft", *again, "parent=models:/assistant@sft", cwd=shop.root)
    assert code == 2, output
    assert "now resolves to models:/assistant/2; the run started from models:/assistant/1" in output


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["packed", "lora"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_it_goes_on_as_if_never_stopped(
    shop: Workshop, through: dict[str, dict[int, tuple[float, float, str]]], kind: str,
    number: signal.Signals, tmp_path: Path,
) -> None:  # fmt: skip
    name = f"{kind}-{number.name}"
    command = ("sft", *shop.overrides, *QUIET, *EXTRA[kind], f"run.name={name}", PARENT(shop))
    run_dir = shop.run_dir(name)
    until = f"{run_dir}/stop-requested*"
    hold = {"what": "hold", "until": until, "rank": 0, "step": 15, "phase": "forward"}
    process = job.start(*command, cwd=shop.root, env=with_faults(tmp_path, hold))
    job.wait_for(process, lambda: happened(tmp_path) == 1)
    process.send_signal(number)
    process.communicate(timeout=job.TIMEOUT_S)
    wait_for_no_orphans(run_dir)
    committed = max(int(path.name[5:]) for path in (run_dir / "checkpoints").glob("step-????????"))
    assert committed < STEPS
    code, output = job.run(*command, cwd=shop.root)
    assert code == 0, output
    assert f"resumed at step {committed}" in output
    second = [event for event in job.events(run_dir, "step") if event["attempt"] == 2]
    assert second[0]["step"] == committed + 1
    assert losses(run_dir) == through_of(shop, through, kind)


EXTRA = {"packed": (), "lora": ("lora.rank=4", "optim.learning_rate=1e-2", "neftune_alpha=5")}


def PARENT(shop: Workshop) -> str:  # noqa: N802
    return f"parent={shop.run_dir('base') / 'export'}"


@pytest.fixture(scope="module")
def through() -> dict[str, dict[int, tuple[float, float, str]]]:
    """Uninterrupted runs, by kind, made when first asked for."""
    return {}


def through_of(
    shop: Workshop, known: dict[str, dict[int, tuple[float, float, str]]], kind: str
) -> dict[int, tuple[float, float, str]]:
    if kind not in known:
        command = ("sft", *shop.overrides, *QUIET, *EXTRA[kind], f"run.name={kind}", PARENT(shop))
        code, output = job.run(*command, cwd=shop.root)
        assert code == 0, output
        run_dir = shop.run_dir(kind)
        known[kind] = losses(run_dir)
        assert sorted(known[kind]) == list(range(1, STEPS + 1))
        if kind == "lora":
            check_adapter(run_dir)
    return known[kind]


def check_adapter(run_dir: Path) -> None:
    """The adapter is exported next to the merged model; the checkpoint holds nothing else."""
    assert (run_dir / "adapter" / "adapter_model.safetensors").exists()
    saved = json.loads((run_dir / "export" / "saved.json").read_text())
    assert saved["logit_difference"] < 1e-4
    [newest] = sorted((run_dir / "checkpoints").glob("step-????????"))[-1:]
    names = json.loads((newest / "index.json").read_text())
    assert names
    assert all("lora_" in name or "trainable_tokens" in name for name in names)


@pytest.mark.slow
def test_two_workers_a_mixture_and_zero_3_compute_the_same(shop: Workshop) -> None:
    """Ranks that gather weights answer questions in step, and every set has figures of its own."""
    records = [
        {"messages": [{"role": "user", "content": f"Count to {n}."},
                      {"role": "assistant", "content": " ".join(map(str, range(1, n + 1)))}]}
        for n in range(1, 25)
        for _ in range(4)
    ]  # fmt: skip
    other = write_jsonl(shop.root / "other.jsonl", records)
    folders = []
    for name, path in (("mills", shop.root / "chats.jsonl"), ("counts", other)):
        code, output = job.run(
            "prepare", "kind=chat", *shop.overrides, PARENT(shop), f"data.path={path}",
            f"data.name={name}", cwd=shop.root,
        )  # fmt: skip
        assert code == 0, output
        folders += [p.name for p in (shop.root / "storage" / "data").glob(f"{name}-*")]
    found = []
    for workers, zero in ((1, "stage1"), (2, "stage3")):
        run_dir = shop.run_dir(f"mixed-{workers}")
        code, output = job.run(
            "sft", *shop.overrides, PARENT(shop), f"run.name={run_dir.name}", "tracking=none",
            f"data.mixture={{{folders[0]}: 0.6, {folders[1]}: 0.4}}", f"run.workers={workers}",
            f"zero={zero}", "train.steps=12", "evaluation.every=6", "evaluation.questions=7",
            "evaluation.answer_tokens=8", "evaluation.forgetting=none", cwd=shop.root,
        )  # fmt: skip
        assert code == 0, output
        steps = job.events(run_dir, "step")
        last = job.events(run_dir, "evaluation")[-1]
        assert {"eval/mills/loss", "eval/counts/loss", "answers/f1"} <= last.keys()
        assert sum("train/counts/loss" in event for event in steps) > 6
        found.append([event["train/loss"] for event in steps] + [last["answers/loss"]])
    assert found[0] == pytest.approx(found[1], rel=1e-4)
