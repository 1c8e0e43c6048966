"""`make demo-large`: its configuration, a start from a Hugging Face folder, its first steps at full size."""

from __future__ import annotations

import json
import shlex
import subprocess
from math import log
from pathlib import Path

import pytest

from data.chat_factory import write_jsonl
from driver import job
from driver.job import ROOT
from raymill.config import load
from raymill.errors import ConfigError
from raymill.plan.parameters import count_parameters
from raymill.schema.jobs import PipelineJob

STEPS, STOPPED_AT = 20, 12
END = "<|fin|>"


def overrides(*variables: str) -> list[str]:
    """Return the arguments that the Makefile passes to the pipeline."""
    printed = subprocess.run(
        ["make", "-n", "demo-large", *variables],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    (command,) = [line for line in printed.splitlines() if "jobs/pipeline.py" in line]
    return shlex.split(command)[2:]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small GPT-2 as others save it: dropout, an epsilon and an end of text of its own, n_inner left open."""
    import torch
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    found = tmp_path_factory.mktemp("folder") / "tiny-gpt2"
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=[AddedToken(END, special=True)],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["The red mill grinds sacks of wheat before day. "] * 9, trainer)
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, bos_token=END)
    wrapped.save_pretrained(found)
    torch.manual_seed(5)
    config = GPT2Config(
        vocab_size=304, n_embd=32, n_layer=2, n_head=2, n_positions=512, layer_norm_epsilon=2e-5,
        eos_token_id=wrapped.eos_token_id, bos_token_id=wrapped.eos_token_id,
    )  # fmt: skip
    GPT2LMHeadModel(config).save_pretrained(found)
    return found


def test_every_stage_loads_and_is_of_gpt2s_size() -> None:
    loaded = load("pipeline", overrides())
    assert isinstance(loaded, PipelineJob)
    assert count_parameters(loaded.pretrain.arch, 50257).total == 124_439_808
    trained = (loaded.pretrain, loaded.sft, loaded.reward, loaded.rlhf)
    assert {stage.train.precision for stage in trained} == {"fp32"}
    assert {str(stage.storage.folder)[-14:] for stage in trained} == {"/storage/large"}
    assert loaded.rank.judge == "right_or_honest"
    on_gpu = load("pipeline", overrides("CLUSTER=local_gpu"))
    assert on_gpu.pretrain.cluster.gpu
    for stage in (on_gpu.pretrain, on_gpu.sft, on_gpu.reward, on_gpu.rlhf):
        assert stage.train.precision == "bf16"


def test_a_folder_brings_its_shape_and_tokenizer(folder: Path) -> None:
    loaded = load("pipeline", overrides(f"MODEL={folder}")).pretrain
    assert (loaded.model, loaded.tokenizer.path) == (str(folder), str(folder))
    assert (loaded.arch.name, loaded.arch.hidden_size, loaded.arch.intermediate_size) == (
        "gpt2",
        32,
        128,
    )
    assert (loaded.arch.norm_eps, loaded.arch.vocab_size, loaded.arch.dropout) == (2e-5, 304, 0.0)
    assert loaded.run.name == "large-tiny-gpt2"


def test_what_cannot_be_continued_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"needs model= with a Hugging Face folder"):
        load("pretrain", ["arch=from_model", "model=models:/assistant@pretrained"])
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mamba"}))
    with pytest.raises(ConfigError, match=r"a model of type mamba"):
        load("pretrain", ["arch=from_model", f"model={tmp_path}"])


@pytest.mark.slow
@pytest.mark.integration
def test_a_folder_goes_through_to_an_assistant(
    ray_session: None, folder: Path, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    job.write_corpus(tmp_path / "texts")
    chats = [{"prompt": f"Which mill is {n}?", "completion": f"Mill {n % 9}."} for n in range(80)]
    write_jsonl(tmp_path / "chats.jsonl", chats)
    given = overrides(f"MODEL={folder}")
    code, output = job.run(
        "pipeline", *given, "stages=[prepare,pretrain,sft]", "tracking=none", "data=files",
        f"data.path={tmp_path / 'texts'}", "data.validation.fraction=0.2", "data.sequence_length=64",
        "train.global_batch=4", "train.micro_batch=4", "train.steps=2", "schedule.warmup_steps=0",
        "evaluation.rows=8", "evaluation.prompts=[The]", "evaluation.sample_tokens=4", "train.threads=1",
        "sft.data=chat", f"sft.data.path={tmp_path / 'chats.jsonl'}", "sft.data.row_group_rows=4",
        "sft.train.global_batch=2", "sft.train.micro_batch=2", "sft.train.steps=2",
        "sft.schedule.warmup_steps=0", "sft.evaluation.questions=4", "sft.evaluation.answer_tokens=4",
        "sft.train.threads=1", cwd=tmp_path,
    )  # fmt: skip
    assert code == 0, output
    assert "held-out questions" not in output, "the demonstration's end is for its own corpus"
    runs = tmp_path / "storage" / "large" / "runs"
    first = job.events(runs / "large-tiny-gpt2", "evaluation")[0]
    assert first["step"] == 0
    base = AutoModelForCausalLM.from_pretrained(runs / "large-tiny-gpt2" / "export")
    assert (base.config.layer_norm_epsilon, base.config.vocab_size) == (2e-5, 304)
    assert AutoTokenizer.from_pretrained(runs / "large-tiny-gpt2" / "export").eos_token == END
    assistant = runs / "large-tiny-gpt2-sft" / "export"
    tokenizer = AutoTokenizer.from_pretrained(assistant)
    assert tokenizer.eos_token == "<|im_end|>"
    turn = tokenizer.apply_chat_template([{"role": "user", "content": "a mill"}], tokenize=False)
    assert turn == "<|im_start|>user\na mill<|im_end|>\n"
    ids = tokenizer(turn).input_ids
    assert len(ids) < len(turn)
    assert max(ids) < AutoModelForCausalLM.from_pretrained(assistant).config.vocab_size


@pytest.mark.slow
@pytest.mark.integration
def test_the_first_steps_and_a_resume_at_full_size(ray_session: None, tmp_path: Path) -> None:
    # Pretraining as demo-large does it, but with a row of 32 tokens per step. The rate is constant, so that a
    # run of fewer steps is the beginning of a longer one.
    others = ("sft.", "rank.", "reward.", "rlhf.")
    given = [
        *(text for text in overrides() if not text.startswith(others)), "tracking=none",
        "data.sequence_length=32", "train.global_batch=1", "train.micro_batch=1", "schedule=constant",
        "schedule.warmup_steps=4", "evaluation.every=0", "evaluation.rows=8", "evaluation.prompts=[]",
        "checkpoint.every=100", "train.threads=1",
    ]  # fmt: skip
    runs = tmp_path / "storage" / "large" / "runs"
    code, output = job.run("prepare", *given, cwd=tmp_path)
    assert code == 0, output

    def losses(name: str, *steps: int) -> dict[int, tuple[float, float, str]]:
        for count in steps:
            code, output = job.run(
                "pretrain", *given, f"run.name={name}", f"train.steps={count}", cwd=tmp_path
            )
            assert code == 0, output
        return {
            event["step"]: (
                event["train/loss"],
                event["train/grad_norm"],
                event["sample_ids_sha256"],
            )
            for event in job.events(runs / name, "step")
        }

    resumed = losses("resumed", STOPPED_AT, STEPS)
    assert [event["attempt"] for event in job.events(runs / "resumed", "step")] == [
        *[1] * STOPPED_AT,
        *[2] * (STEPS - STOPPED_AT),
    ]
    checkpoint = max((runs / "resumed" / "checkpoints").glob("step-????????"))
    stored = sum(path.stat().st_size for path in checkpoint.rglob("*"))
    assert stored > 12 * 124_439_808, "fp32 weights and two moments of all parameters"
    assert resumed == losses("through", STEPS)
    held_out = [event["eval/loss"] for event in job.events(runs / "through", "evaluation")]
    assert held_out[0] == pytest.approx(log(50257), abs=0.5), (
        "nothing is known before the first step"
    )
    # By 0.43 as measured: a step learns from 32 tokens.
    assert held_out[-1] < held_out[0] - 0.2
