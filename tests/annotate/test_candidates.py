"""Sampling ahead: answers are kept, differ from each other, and are spread over the models."""

from __future__ import annotations

import json
import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from annotate.site_factory import ScriptedSampler, ask, numbered
from generate.chat_factory import write_chat_folder
from raymill.annotate.candidates import SAME, TRIES, BackgroundSampler, SamplingPlan, sample_answers
from raymill.annotate.database import Database
from raymill.annotate.items import (
    answers_to,
    count_items,
    make_item,
    ready_items,
    set_items,
    unusable_reasons,
)
from raymill.annotate.prompts import choose_prompts, prompt_name
from raymill.annotate.ranking_rules import resolve_rule
from raymill.annotate.sampler import ModelSampler
from raymill.config import load
from raymill.data.messages.problems import Problem
from raymill.data.store.split import TRAIN, is_held_out
from raymill.errors import DataError
from raymill.track.registry import ResolvedModel

SETTINGS = {"temperature": 1.0, "top_p": 0.9, "max_new_tokens": 12}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return write_chat_folder(tmp_path_factory.mktemp("model"))


def model_sampler(folder: Path, **changes: Any) -> ModelSampler:
    return ModelSampler(ResolvedModel(folder, str(folder)), **{**SETTINGS, **changes})


def test_answers_are_made_once(tmp_path: Path) -> None:
    database, items = ask(tmp_path, ["One?", "Two?", "Three?"])
    sampler = ScriptedSampler(numbered)
    sample_answers(database, SamplingPlan([sampler], 2, seed=1), group=2)
    assert Counter(question for question, _ in sampler.asked) == {
        "One?": 2, "Two?": 2, "Three?": 2,
    }  # fmt: skip
    assert len({seed for _, seed in sampler.asked}) == 6
    made = [answers_to(database, item.item_id) for item in items]
    database.close()
    database, _ = ask(tmp_path, ["One?", "Two?", "Three?"])  # a restart
    again = ScriptedSampler(numbered)
    sample_answers(database, SamplingPlan([again], 2, seed=1), group=2)
    assert not again.asked
    assert [answers_to(database, item.item_id) for item in items] == made


def test_the_same_answers_are_drawn_again_and_then_left_out(tmp_path: Path) -> None:
    def write(question: str, seed: int, number: int) -> str | Problem:
        if question == "Stubborn?":
            return "Yes. "[: 4 + number % 2]  # white space makes no difference
        if question == "Empty?":
            return " " if number % 2 else "Something"
        if question == "Hopeless?":
            return Problem("over_long", "the prompt is too long")
        return "Same" if number < 12 else f"Number {number}"

    questions = ["Stubborn?", "Empty?", "Hopeless?", "Mendable?"]
    database, items = ask(tmp_path, questions)
    sampler = ScriptedSampler(write)
    sample_answers(database, SamplingPlan([sampler], 2, seed=1), group=8)
    assert [item.messages[0]["content"] for item in ready_items(database)] == ["Mendable?"]
    assert len({answer.text for answer in answers_to(database, items[3].item_id)}) == 2
    reasons = dict(unusable_reasons(database))
    assert reasons[SAME] == 1 and reasons["the prompt is too long"] == 1
    assert any("empty" in why for why in reasons)
    counts = count_items(database)
    assert (counts.all, counts.ready, counts.unusable, counts.waiting) == (4, 1, 3, 0)
    asked = Counter(question for question, _ in sampler.asked)
    assert asked["Stubborn?"] == 1 + TRIES and asked["Hopeless?"] == 2


def test_models_answer_equally_often_and_never_themselves_alone(tmp_path: Path) -> None:
    database, items = ask(tmp_path, [f"{number}?" for number in range(12)])
    samplers = [ScriptedSampler(numbered, f"model {name}") for name in "abc"]
    sample_answers(database, SamplingPlan(samplers, 2, seed=1), group=5)
    used = [[one.model for one in answers_to(database, item.item_id)] for item in items]
    assert all(len(set(models)) == 2 for models in used)
    assert Counter(model for models in used for model in models) == {
        "model a": 8,
        "model b": 8,
        "model c": 8,
    }


def test_preparation_beside_a_page_says_how_it_ended(tmp_path: Path) -> None:
    database, _ = ask(tmp_path, ["One?", "Two?"])
    over = threading.Event()
    ended: list[BaseException | None] = []

    def end(error: BaseException | None) -> None:
        ended.append(error)
        over.set()

    def fail(question: str, seed: int, number: int) -> str:
        raise MemoryError("no room")

    failing = BackgroundSampler(database, SamplingPlan([ScriptedSampler(fail)], 2, 1), 4, end)
    assert over.wait(5)
    failing.stop()
    assert isinstance(ended[0], MemoryError) and failing.failure is ended[0]
    assert count_items(database).waiting == 2  # nothing is lost: a restart tries again
    over.clear()
    working = BackgroundSampler(database, SamplingPlan([ScriptedSampler(numbered)], 2, 1), 1, end)
    assert over.wait(5)
    working.stop()
    assert working.failure is None and count_items(database).ready == 2


def test_an_item_is_named_by_what_its_answers_depend_on() -> None:
    def name(**changes: Any) -> str:
        given = {"mode": "rank", "prompt_id": "1", "reference": None, "sampling": {"seed": 1}}
        messages = [{"role": "user", "content": "?"}]
        return make_item(messages=messages, **{**given, **changes}).item_id

    assert name() == name(prompt_id="2") == name(reference="!")
    assert len({name(), name(mode="write"), name(sampling={"seed": 2})}) == 3


def test_equal_weights_are_asked_alike_whatever_their_history(tmp_path: Path) -> None:
    drawn, judged = [], []
    for model in ("runs/first/export", "runs/second/export"):
        database = Database(tmp_path / f"{len(drawn)}.sqlite")
        questions = [[{"role": "user", "content": f"What is {number}?"}] for number in range(20)]
        items = [
            make_item("rank", f"prompt {number}", question, None, {"models": [model]})
            for number, question in enumerate(questions)
        ]
        set_items(database, "rank", items)
        sampler = ScriptedSampler(numbered, model)
        sample_answers(database, SamplingPlan([sampler], 2, 1), 4)
        drawn.append(sampler.asked)
        rule = resolve_rule("length", 0.5, 1)
        judged.append([rule.rank(item, answers_to(database, item.item_id)) for item in items])
    assert drawn[0] == drawn[1] and judged[0] == judged[1]
    assert len({seed for _, seed in drawn[0]}) == 40


def test_a_model_is_asked_through_its_template(folder: Path) -> None:
    sampler = model_sampler(folder)
    prompts = [({"role": "user", "content": text},) for text in ("Hello", "Who are you?", "Hello")]
    answers = sampler.answers(prompts, [1, 2, 3])
    again = sampler.answers(prompts[1:2], [2])
    assert answers[1] == again[0]  # other prompts of the batch make no difference
    assert answers[0] != answers[2]
    for answer in answers:
        assert not isinstance(answer, Problem)
        assert answer.model == str(folder) and len(answer.model_digest) == 64
        assert answer.settings == SETTINGS
        assert len(answer.ids) <= 12 and (answer.finish == "stop" or len(answer.ids) == 12)
        assert "<|im_end|>" not in answer.text
    assert sampler.identity["digest"] == answers[0].model_digest  # type: ignore[union-attr]


def test_a_prompt_without_room_for_an_answer_is_a_problem(folder: Path) -> None:
    sampler = model_sampler(folder, max_new_tokens=200)
    long, short = (({"role": "user", "content": text},) for text in ("long " * 30, "short"))
    found = sampler.answers([long, short], [1, 2])
    assert isinstance(found[0], Problem) and found[0].cause == "over_long"
    assert not isinstance(found[1], Problem)
    assert isinstance(sampler.answers([long], [1])[0], Problem)


def test_a_model_without_a_template_cant_be_asked(tmp_path: Path) -> None:
    folder = write_chat_folder(tmp_path, template=None)
    with pytest.raises(DataError, match="no chat template"):
        model_sampler(folder)


def prompts_config(path: Path, *overrides: str) -> Any:
    job = load("rank", [f"data.path={path}", "tracking=none", "model=somewhere", *overrides])
    return job.data


def test_prompts_are_a_seeded_choice_of_the_training_side(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    records: list[dict[str, Any]] = [{"prompt": f"Question {n}?", "id": str(n)} for n in range(200)]
    records.append({"prompt": "Question 7?"})
    records.append({"prompt": "Call!", "tools": [{"type": "function"}], "id": "with tools"})
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    data = prompts_config(path, "data.validation.fraction=0.2")
    chosen = choose_prompts(data, 50, seed=3)
    assert len(chosen.prompts) == 50 == len({prompt.id for prompt in chosen.prompts})
    assert not any(is_held_out(prompt.first_user, 0.2, 3) for prompt in chosen.prompts)
    held_out = sum(is_held_out(f"Question {n}?", 0.2, 3) for n in range(200))
    assert abs(chosen.held_out - held_out) <= 2 and TRAIN == "train"
    assert chosen.repeated <= 1 and chosen.with_tools <= 1
    assert "held out" in chosen.describe()
    assert choose_prompts(data, 50, seed=3).prompts == chosen.prompts
    assert choose_prompts(data, 50, seed=4).prompts != chosen.prompts
    # More are wanted: those that were chosen stay.
    assert choose_prompts(data, 60, seed=3).prompts[:50] == chosen.prompts
    assert prompt_name(chosen.prompts[0]) == chosen.prompts[0].id
    assert len(prompt_name(replace(chosen.prompts[0], id=None))) == 16


def test_too_many_bad_prompts_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "Fine?"}\n{"prompt": 3}\n')
    with pytest.raises(DataError, match=r"1 of 2 records(.|\n)*prompts.jsonl:2"):
        choose_prompts(prompts_config(path), 50, seed=3)
    chosen = choose_prompts(prompts_config(path, "data.max_bad_fraction=0.5"), 50, seed=3)
    assert len(chosen.prompts) == 1 and chosen.bad == 1
