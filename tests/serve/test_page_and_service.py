"""The chat page in a real browser, with the real application over models that are drawn from."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest

from annotate.browser import CHROMIUM, CONTROL, Tab, running_browser
from generate.chat_factory import END, END_OF_TEXT, write_chat_folder
from raymill.annotate.database import DATABASE_NAME, Database
from raymill.generate.build import build_engine
from raymill.generate.engine.request import Progress, SamplingParameters
from raymill.generate.load import load_model
from raymill.serve.app import ServeApplication
from raymill.serve.keys import ApiKeys
from raymill.serve.opening import feedback_on
from raymill.serve.served_model import ServedModel
from serve.chat_page import (
    IMPORTED,
    LAST,
    ask,
    done,
    enter,
    long_chat,
    press_button,
    text_of,
    texts,
)
from serve.chat_page import shoot as shoot_one
from serve.service import at_address, served_model, settings

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on the PATH to drive"),
]
PAUSE_S, TOKENS = 0.02, 120


class Unhurried:
    """An engine that takes its time, so that an answer can be stopped; all are equally long."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def submit(self, prompt: Sequence[int], parameters: SamplingParameters) -> int:
        # A random model may end its turn at once.
        never = dict.fromkeys((END, END_OF_TEXT), -100.0)
        key: int = self._engine.submit(
            prompt, replace(parameters, logit_bias=never, max_new_tokens=TOKENS)
        )
        return key

    def step(self) -> list[Progress]:
        time.sleep(PAUSE_S)
        found: list[Progress] = self._engine.step()
        return found


@dataclass(frozen=True)
class Page:
    """A page over two models."""

    tab: Tab
    address: str
    models: dict[str, ServedModel]
    database: Database

    @property
    def running(self) -> int:
        return sum(model.runner.counts.running for model in self.models.values())


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    root = tmp_path_factory.mktemp("page")
    config = settings()
    models = {}
    for number, name in enumerate(("assistant@aligned", "assistant@sft")):
        folder = write_chat_folder(root / name, positions=8192)
        engine: Any = Unhurried(build_engine(load_model(folder)[0], slots=4))
        model = served_model(folder, engine, config, name)
        version = f"models:/assistant/{number + 1}"
        models[name] = replace(model, version=version, fingerprint=f"{number}a" * 32)
    with Database(root / DATABASE_NAME) as database, running_browser(root / "browser") as browser:
        feedback = feedback_on(database, models.values())
        app = ServeApplication(models, config, ApiKeys(()), feedback)
        with at_address(app) as address:
            tab = browser.first()
            tab.size(1280, 800)
            yield Page(tab, address, models, database)
    for model in models.values():
        model.runner.close()


def shoot(tab: Tab, name: str) -> None:
    """Take pictures in light, dark, and as wide as a phone."""
    shoot_one(tab, f"real-{name}")
    tab.dark(True)
    shoot_one(tab, f"real-{name}-dark")
    tab.dark(False)
    tab.size(390, 844, mobile=True)
    assert tab.evaluate("document.documentElement.scrollWidth") == 390
    shoot_one(tab, f"real-{name}-phone")
    tab.size(1280, 800)


def test_stream_stop_regenerate_and_branch(page: Page) -> None:
    tab = page.tab
    enter(tab, page.address)
    ask(tab, "Hello there, who are you?", wait=False)
    tab.wait("document.querySelector('.running .markdown')?.textContent.length > 30")
    assert page.running == 1
    tab.press("Escape")
    done(tab)
    until = time.monotonic() + 1
    while page.running and time.monotonic() < until:
        time.sleep(0.01)
    assert page.running == 0, "the slot is free again within a second"
    assert text_of(tab, f"{LAST} .tag") == "stopped"
    stopped = texts(tab)[1]

    press_button(tab, LAST, "Regenerate")
    tab.wait(f"document.querySelector('{LAST} .pager .count')?.textContent === '2/2'")
    done(tab)
    assert texts(tab)[1] != stopped
    shoot(tab, "answer")
    press_button(tab, LAST, "Earlier branch")
    tab.wait(f"document.querySelector('{LAST} .pager .count').textContent === '1/2'")
    assert texts(tab)[1] == stopped

    ask(tab, "And now?")
    assert len(texts(tab)) == 4
    press_button(tab, ".message:nth-child(3)", "Edit")
    tab.wait("document.activeElement.matches('.editing textarea')")
    tab.type(" Or else?")
    tab.press("Enter", CONTROL)
    tab.wait("document.querySelector('.message:nth-child(3) .pager .count')?.textContent === '2/2'")
    done(tab)
    assert texts(tab)[:3] == ["Hello there, who are you?", stopped, "And now? Or else?"]
    # The first turn was in the cache.
    counts = page.models["assistant@aligned"].runner.counts
    assert counts.reused > 0
    assert tab.console == []


def test_two_models_and_a_vote(page: Page) -> None:
    tab = page.tab
    enter(tab, page.address)
    tab.press("k", CONTROL)
    tab.evaluate("document.querySelector('#compare').click()")
    tab.evaluate("document.querySelector('#other').value = 'assistant@sft'")
    tab.evaluate("document.querySelector('#other').dispatchEvent(new Event('change'))")
    ask(tab, "Which?")
    shoot(tab, "pair")
    tab.evaluate("document.activeElement.blur()")
    tab.press("b")
    tab.wait("document.querySelector('dialog[open] #asked')")
    tab.type("Ada")
    tab.press("Enter")
    tab.wait("document.querySelector('.vote').textContent.includes('Your vote: B is better.')")
    [vote] = page.database.rows("SELECT * FROM judgements")
    assert (vote["annotator"], vote["ranks"]) == ("Ada", "[2,1]")
    shown = json.loads(vote["shown"])
    assert {one["model"] for one in shown} == {one.version for one in page.models.values()}
    assert all(isinstance(one["seed"], int) for one in shown)
    tab.evaluate("document.querySelector('#compare').click()")
    assert tab.console == []


def test_probabilities_on_hover(page: Page) -> None:
    tab = page.tab
    enter(tab, page.address)
    tab.press("k", CONTROL)
    tab.evaluate("document.activeElement.blur()")
    tab.press("p")
    ask(tab, "How likely?")
    tokens = tab.evaluate("document.querySelectorAll('.token').length")
    assert tokens == TOKENS
    x, y = tab.middle(".token:nth-child(2)")
    tab.mouse("mouseMoved", x, y)
    tab.wait("!document.querySelector('#token-card').hidden")
    assert "%" in text_of(tab, "#token-card")
    shoot(tab, "tokens")
    tab.evaluate("document.activeElement.blur()")
    tab.press("p")
    assert tab.console == []


def test_a_chat_of_200_messages_goes_on(page: Page) -> None:
    tab = page.tab
    enter(tab, page.address)
    tab.evaluate(IMPORTED % json.dumps(json.dumps(long_chat(200))))
    tab.wait("document.querySelectorAll('.message').length === 200")
    ask(tab, "Once more?", wait=False)
    tab.wait("document.querySelectorAll('.message').length >= 202")
    done(tab)
    shoot(tab, "long")
    assert len(texts(tab)) == 202
    assert tab.console == []
