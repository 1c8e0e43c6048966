"""`jobs/serve.py` with vLLM answers what it answers with slots."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import pytest

from generate.chat_factory import END_OF_TEXT, VOCAB_SIZE, write_chat_folder
from raymill.config import load
from raymill.model.build import build_model
from serve.server_process import server_process

pytestmark = pytest.mark.vllm

REQUESTS: list[dict[str, Any]] = [
    {"temperature": 0},
    {"temperature": 0, "logprobs": True, "top_logprobs": 0, "presence_penalty": 1.5},
    {"temperature": 0, "guided_regex": "[a-z]{5} [0-9]{3}"},
    {"temperature": 0, "response_format": {"type": "json_object"}},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with heads of 32, as vLLM's kernels for CPUs ask for."""
    folder = write_chat_folder(tmp_path_factory.mktemp("served") / "model")
    arch = load("pretrain", ["experiment=tiny"]).arch
    arch = replace(
        arch, hidden_size=64, heads=2, kv_heads=1, head_dim=32, intermediate_size=96, max_positions=256
    )  # fmt: skip
    build_model(arch, VOCAB_SIZE, END_OF_TEXT, 1).save_pretrained(folder)
    return folder


def answers(folder: Path, decoder: str) -> list[Any]:
    settings = (f"model={folder}", f"serve.decoder={decoder}", "serve.slots=4", "votes=null")
    with server_process(*settings, f"storage.root={folder.parent}") as server:
        found = []
        for asked in REQUESTS:
            message = {"role": "user", "content": "Add 1 and 2."}
            body = {"model": "model", "max_tokens": 24, "messages": [message], **asked}
            url = f"{server.address}/v1/chat/completions"
            response = httpx2.post(url, json=body, timeout=60)
            assert response.status_code == 200, response.text
            found.append(response.json()["choices"][0])
        cold = httpx2.post(url, json={**body, "temperature": 0.001}, timeout=60)
        assert cold.status_code == (400 if decoder == "vllm" else 200)
        assert server.stop() == 0
    return found


def test_its_answers_are_those_of_slots(folder: Path) -> None:
    for ours, theirs in zip(answers(folder, "slots"), answers(folder, "vllm"), strict=True):
        assert theirs["message"] == ours["message"]
        assert theirs["finish_reason"] == ours["finish_reason"]
        if ours["logprobs"] is not None:
            pairs = zip(ours["logprobs"]["content"], theirs["logprobs"]["content"], strict=True)
            for one, other in pairs:
                assert other["logprob"] == pytest.approx(one["logprob"], abs=1e-4)
