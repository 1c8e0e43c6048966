"""Evaluations over HTTP give the numbers that they give in one process: lm-eval's two ways to ask a model."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from generate.chat_factory import write_chat_folder
from serve.server_process import server_process

TASK = """
task: letters
dataset_path: json
dataset_kwargs:
  data_files: {{test: {path}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
"""
QUESTIONS = 40


def evaluated(model: str, arguments: dict[str, Any], folder: Path) -> Any:
    """Return lm-eval's results and samples of the task in a folder."""
    lm_eval = pytest.importorskip("lm_eval")
    from lm_eval.tasks import TaskManager

    return lm_eval.simple_evaluate(
        model=model,
        model_args=arguments,
        tasks=["letters"],
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
        bootstrap_iters=0,
        log_samples=True,
    )


@pytest.mark.slow
def test_lm_eval_over_http_equals_lm_eval_on_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("lm_eval")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    folder = write_chat_folder(tmp_path / "tiny", positions=512)
    rows = [
        {
            "question": f"Question {number}: {'abcdefg'[number % 7] * (number % 30 + 1)} ü",
            "choices": [f" {letter * (number % 5 + 1)}é" for letter in "wxyz"],
            "answer": number % 4,
        }
        for number in range(QUESTIONS)
    ]
    path = tmp_path / "letters.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    (tasks / "letters.yaml").write_text(TASK.format(path=path))
    here = evaluated("hf", {"pretrained": str(folder), "device": "cpu", "dtype": "float32"}, tasks)
    with server_process(f"model={folder}", f"storage.root={tmp_path}", "serve.slots=8") as server:
        there = evaluated(
            "local-completions",
            {
                "model": "tiny",
                "base_url": f"{server.address}/v1/completions",
                "tokenizer": str(folder),
                "max_length": 512,
                "num_concurrent": 4,
                "batch_size": 2,
            },
            tasks,
        )
    compared = 0
    samples = zip(there["samples"]["letters"], here["samples"]["letters"], strict=True)
    for one, other in samples:
        for (found, greedy), (expected, greedily) in zip(
            one["filtered_resps"], other["filtered_resps"], strict=True
        ):
            # "True" as text where the samples were cleaned for JSON.
            assert math.isclose(float(found), float(expected), abs_tol=1e-3), (
                one["doc"],
                found,
                expected,
            )
            assert str(greedy) == str(greedily)
            compared += 1
    assert compared == 4 * QUESTIONS
    assert there["results"]["letters"] == here["results"]["letters"]
