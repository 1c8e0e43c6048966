"""Registered versions as MLflow models: MLflow's tools load, serve and evaluate them, with this package's
outputs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import pytest

from checkpoint.test_commit import save
from engine.alignment_probe import write_judge, write_parent
from generate.chat_factory import write_chat_folder
from raymill.checkpoint.resume import newest_verified
from raymill.track import tracker as tracker_module
from raymill.track.registry import resolve_model
from raymill.track.tracker import Tracker
from servers import free_port
from track.test_tracker import resolved_for, write_steps

MESSAGES = [{"role": "user", "content": "What does the red mill grind?"}]
CHAT, BASE, SCORE = (
    "models:/assistant@sft",
    "models:/assistant@pretrained",
    "models:/assistant@reward",
)


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Register an assistant, a base model, a reward model and adapters; point MLflow's own tools to the
    registry."""
    import mlflow

    root = tmp_path_factory.mktemp("registry")
    base = write_parent(root / "base", hidden=32)
    exports = {
        "pretrained": base, "sft": write_chat_folder(root / "chat"),
        "reward": write_judge(base, root / "judge"),
    }  # fmt: skip
    adapter = root / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tracker_module, "FIRST_STEP_S", 0.0)
        for step, (alias, export) in enumerate(exports.items(), 1):
            resolved = resolved_for(root, None, 60, f"tracking.alias={alias}")
            if step == 1:
                write_steps(resolved)
            save(resolved.checkpoints, step)
            found = newest_verified(resolved.checkpoints)
            assert found is not None
            tracker = Tracker(resolved)
            tracker.start()
            tracker.register(found, export, {}, adapter if alias == "sft" else None)
            tracker.close("finished")
    uri = f"sqlite:///{root / 'mlflow.db'}"
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(uri)
    yield root
    mlflow.set_tracking_uri(before)


def test_the_files_are_the_exported_ones_and_a_description(registry: Path) -> None:
    import mlflow

    job = resolved_for(registry, None).job
    folder = resolve_model(CHAT, job.tracking, registry).folder
    for path in (registry / "chat").iterdir():
        assert (folder / path.name).read_bytes() == path.read_bytes()
    info = mlflow.models.get_model_info(CHAT)
    assert {"transformers", "python_function"} <= set(info.flavors)
    assert info.signature is not None
    assert "messages" in info.signature.inputs.input_names()
    sizes = [path.stat().st_size for path in (registry / "chat").iterdir()]
    assert mlflow.models.Model.load(CHAT).model_size_bytes == sum(sizes)
    named = (folder / "requirements.txt").read_text().splitlines()
    assert f"mlflow=={version('mlflow')}" in named
    assert not any("+" in line for line in named)
    adapter = resolve_folder("models:/assistant-adapter@sft")
    assert sorted(path.name for path in adapter.iterdir()) == ["adapter_config.json"], (
        "no whole model"
    )


def resolve_folder(uri: str) -> Path:
    from mlflow.artifacts import download_artifacts

    return Path(download_artifacts(uri))


def test_its_pipeline_says_what_the_exported_model_says(registry: Path) -> None:
    import mlflow
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    for uri, name in ((CHAT, "chat"), (BASE, "base")):
        pipeline = mlflow.transformers.load_model(uri)
        tokenizer = AutoTokenizer.from_pretrained(registry / name)
        model = AutoModelForCausalLM.from_pretrained(registry / name)
        ids = tokenizer("The mill", return_tensors="pt")["input_ids"]
        with torch.no_grad():
            assert torch.equal(pipeline.model(ids).logits, model(ids).logits)
        assert pipeline.tokenizer("The mill")["input_ids"] == ids[0].tolist()
        assert pipeline.tokenizer.chat_template == tokenizer.chat_template
        [answer] = pipeline("The mill", max_new_tokens=3, do_sample=False, return_tensors=True)
        expected = model.generate(ids, max_new_tokens=3, do_sample=False)[0]
        assert answer["generated_token_ids"] == expected.tolist()


def test_pyfunc_converses_and_completes(registry: Path) -> None:
    import mlflow
    from transformers import AutoTokenizer

    chat = mlflow.pyfunc.load_model(CHAT)
    [reply] = chat.predict({"messages": MESSAGES, "max_tokens": 5})
    check_reply(reply, registry)
    [long] = chat.predict({"messages": MESSAGES})
    assert long["usage"]["completion_tokens"] <= 128, "half of what the model reads"
    assert chat.predict({"messages": MESSAGES, "max_tokens": 5, "stop": ["."]})[0]["choices"]
    base = mlflow.pyfunc.load_model(BASE)
    [reply] = base.predict({"prompt": "The mill", "max_tokens": 4})
    assert reply["object"] == "text_completion"
    prompt = AutoTokenizer.from_pretrained(registry / "base")("The mill")["input_ids"]
    assert reply["usage"] == {
        "prompt_tokens": len(prompt), "completion_tokens": 4, "total_tokens": len(prompt) + 4,
    }  # fmt: skip
    for model in (chat, base):
        assert model.predict(model.input_example)[0]["choices"]


def check_reply(reply: dict[str, Any], registry: Path) -> None:
    """Return an answer to `MESSAGES`, of five tokens at most, whose prompt is the template's."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(registry / "chat")
    prompt = tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True, return_dict=False)
    assert reply["object"] == "chat.completion"
    assert reply["usage"]["prompt_tokens"] == len(prompt)
    assert 1 <= reply["usage"]["completion_tokens"] <= 5
    assert reply["choices"][0]["message"]["role"] == "assistant"


def test_a_reward_model_gives_the_score_that_rewards_are_made_of(registry: Path) -> None:
    import mlflow
    from transformers import AutoTokenizer

    from raymill.rl.reward.model import NO_SAMPLING, RewardModelSpec

    model = mlflow.pyfunc.load_model(SCORE)
    texts = [model.input_example, "another text"]
    assert "Fine." in texts[0]
    assert "How are you?" in texts[0]
    frame = model.predict(texts)
    tokenizer = AutoTokenizer.from_pretrained(registry / "judge")
    engine = RewardModelSpec(str(registry / "judge"), "fp32", threads=1).build()
    ids = [tokenizer(text)["input_ids"] for text in texts]
    assert frame["score"].tolist() == pytest.approx(
        engine.generate(ids, NO_SAMPLING, (0, 0)), abs=1e-5
    )
    pipeline = mlflow.transformers.load_model(SCORE)
    assert [one["score"] for one in pipeline(texts)] == pytest.approx(frame["score"].tolist())


@pytest.mark.slow
def test_mlflow_evaluates_versions(registry: Path) -> None:
    import mlflow
    import pandas as pd
    from mlflow.genai.scorers import scorer

    mlflow.set_experiment("evaluations")
    model = mlflow.pyfunc.load_model(CHAT)

    def answer(messages: list[dict[str, str]]) -> str:
        [reply] = model.predict({"messages": messages, "max_tokens": 5})
        return str(reply["choices"][0]["message"]["content"])

    @scorer
    def is_answered(outputs: str) -> bool:
        return bool(outputs)

    evaluated = mlflow.genai.evaluate(
        data=[{"inputs": {"messages": MESSAGES}}], predict_fn=answer, scorers=[is_answered]
    )
    assert evaluated.metrics["is_answered/mean"] == 1.0

    def lengths(predictions: Any) -> Any:
        from mlflow.metrics import MetricValue

        contents = [choices[0]["message"]["content"] for choices in predictions]
        return MetricValue(aggregate_results={"mean": sum(map(len, contents)) / len(contents)})

    by_name = mlflow.models.evaluate(
        CHAT,
        pd.DataFrame({"messages": [MESSAGES, MESSAGES]}),
        predictions="choices",
        extra_metrics=[
            mlflow.models.make_metric(eval_fn=lengths, greater_is_better=True, name="length")
        ],
        evaluators="default",
    )
    assert by_name.metrics["length/mean"] > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("uri", "body"),
    [
        (CHAT, {"messages": MESSAGES, "max_tokens": 5}),
        (BASE, {"prompt": "The mill", "max_tokens": 5}),
        (SCORE, {"inputs": ["a text"]}),
    ],
)
def test_mlflow_serves_versions(registry: Path, uri: str, body: dict[str, Any]) -> None:
    port = free_port()
    environment = {**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{registry / 'mlflow.db'}"}
    server = subprocess.Popen(
        [sys.executable, "-m", "mlflow", "models", "serve", "-m", uri, "-p", str(port),
         "--env-manager", "local"],
        env={**environment, "PATH": f"{Path(sys.executable).parent}:{environment['PATH']}"},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        reply = ask(f"http://127.0.0.1:{port}/invocations", body, server)
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
    if uri == CHAT:
        check_reply(reply[0], registry)
    elif uri == BASE:
        assert reply[0]["usage"]["completion_tokens"] <= 5
    else:
        assert isinstance(reply["predictions"][0]["score"], float)


def ask(url: str, body: dict[str, Any], server: subprocess.Popen[str]) -> Any:
    request = Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    deadline = time.monotonic() + 120
    while True:
        assert server.poll() is None, server.stdout and server.stdout.read()
        try:
            with urlopen(request, timeout=60) as response:
                return json.load(response)
        except HTTPError as error:
            raise AssertionError(error.read()) from error
        except (URLError, ConnectionError):
            assert time.monotonic() < deadline
            time.sleep(0.2)
