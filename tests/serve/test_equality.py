"""One model, asked greedily in every way, gives the same tokens, but where two logits are equal in rounding.

Ways: transformers' `generate`, the service alone, among others of equal and of mixed lengths, its chats, and a
conversation at the terminal.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import httpx2
import pytest
import torch

from generate.chat_factory import write_chat_folder
from raymill.generate.build import build_engine
from raymill.generate.conversation import ChatSession
from raymill.generate.engine.request import SamplingParameters
from raymill.generate.load import load_model
from serve.service import Service, at_address

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LENGTH = 16
# Where two ways part, the two likeliest tokens' logits lie this close together.
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Served:
    """A service at an address, and the model behind it."""

    service: Service
    address: str
    model: PreTrainedModel


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = write_chat_folder(tmp_path_factory.mktemp("equal"), positions=256)
    model, _, _ = load_model(folder)
    with (
        Service(folder, build_engine(model, slots=16)) as service,
        at_address(service.app) as address,
    ):
        yield Served(service, address, model)
    torch.set_num_threads(threads)


def prompts_of(count: int, mixed: bool) -> list[list[int]]:
    """Return random prompts of one length, or of lengths from 2 to 90."""
    generator = torch.Generator().manual_seed(7)
    lengths = (
        torch.randint(2, 90, (count,), generator=generator).tolist() if mixed else [24] * count
    )
    return [torch.randint(1, 257, (length,), generator=generator).tolist() for length in lengths]


def generated(model: PreTrainedModel, prompt: list[int], stops: Sequence[int]) -> list[int]:
    """Return what transformers' own `generate` answers."""
    ids = torch.tensor([prompt])
    result = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=LENGTH,
        do_sample=False,
        eos_token_id=list(stops),
        pad_token_id=0,
    )
    return result[0, len(prompt) :].tolist()


def answered(served: Served, prompts: list[list[int]], at_once: int) -> list[list[str]]:
    """Return the answers' tokens, `at_once` of them asked for at the same time."""

    async def one(client: httpx2.AsyncClient, gate: asyncio.Semaphore, prompt: list[int]) -> Any:
        async with gate:
            body = {
                "model": "tiny", "prompt": prompt, "max_tokens": LENGTH, "temperature": 0, "logprobs": 0,
            }  # fmt: skip
            response = await client.post(f"{served.address}/v1/completions", json=body)
            return response.json()["choices"][0]["logprobs"]["tokens"]

    async def run() -> list[list[str]]:
        gate = asyncio.Semaphore(at_once)
        async with httpx2.AsyncClient(timeout=60) as client:
            return await asyncio.gather(*(one(client, gate, prompt) for prompt in prompts))

    return asyncio.run(run())


def check_equal(
    served: Served, prompt: list[int], expected: list[int], found: list[str], stops: frozenset[int]
) -> int:
    """Check that an answer is the expected one, or parts from it between two equal logits: 1 if it does."""
    text = served.service.model.text
    shown = [token for token in expected if token not in stops]
    spelled = [text.spelling(token) for token in shown]
    if found == spelled:
        return 0
    pairs = zip(spelled, found, strict=False)
    place = next(
        (n for n, (one, other) in enumerate(pairs) if one != other), min(len(spelled), len(found))
    )
    ids = torch.tensor([[*prompt, *expected[:place]]])
    with torch.no_grad():
        highest = served.model(ids).logits[0, -1].topk(2).values
    assert highest[0] - highest[1] < TOLERANCE, (place, spelled, found)
    return 1


@pytest.mark.parametrize("count", [20, pytest.param(100, marks=pytest.mark.slow)])
def test_completions_equal_transformers(served: Served, count: int) -> None:
    stops = served.service.model.text.text_stops
    parted = 0
    for mixed in (False, True):
        prompts = prompts_of(count, mixed)
        expected = [generated(served.model, prompt, sorted(stops)) for prompt in prompts]
        for at_once in (1, 16):
            found = answered(served, prompts, at_once)
            for prompt, one, other in zip(prompts, expected, found, strict=True):
                parted += check_equal(served, prompt, one, other, stops)
    print(f"{parted} of {4 * count} answers part from transformers' where two logits are equal")
    assert parted <= count // 10


def test_chats_equal_the_terminal_and_transformers(served: Served) -> None:
    text = served.service.model.text
    encoder = text.chat
    assert encoder is not None
    for number in range(10):
        question = f"Question {number}: how many {'letters' * (number % 3)}?"
        body = {
            "model": "tiny", "temperature": 0, "max_tokens": LENGTH,
            "messages": [{"role": "user", "content": question}],
        }  # fmt: skip
        response = httpx2.post(f"{served.address}/v1/chat/completions", json=body).json()
        message = response["choices"][0]["message"]
        assert "reasoning_content" not in message and "tool_calls" not in message
        parameters = SamplingParameters(LENGTH, temperature=0, stop_ids=frozenset(text.chat_stops))
        session = ChatSession(
            build_engine(served.model, slots=1), text.tokenizer, encoder, parameters
        )
        assert "".join(session.ask(question, seed=0)) == message["content"]
        prompt = encoder.prompt_ids(body["messages"])
        expected = generated(served.model, prompt, sorted(text.chat_stops))
        shown = [token for token in expected if token not in text.chat_stops]
        assert text.decode(shown) == message["content"]
