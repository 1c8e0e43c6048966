"""The chat page in a real browser, driven by keys and a mouse, with a server whose answers are scripted."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from annotate.browser import CHROMIUM, CONTROL, Browser, Tab, running_browser
from raymill.annotate.export import export_preferences
from serve.chat_page import (
    CAUGHT,
    IMPORTED,
    LAST,
    OBSERVED,
    ask,
    done,
    enter,
    long_chat,
    press_button,
    shoot,
    text_of,
    texts,
)
from serve.markdown_cases import MARKDOWN, RENDER
from serve.scripted_server import OVERHEAD, Script, ScriptedServer, say

pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="there is no Chromium (chromium, google-chrome) on the PATH to drive"
)
HOSTILE = (
    "<img src=x onerror=\"document.title='taken over'\"><script>alert(1)</script> "
    "[x](javascript:alert(1))"
)


@pytest.fixture(scope="module")
def windows(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Browser, Tab]]:
    with running_browser(tmp_path_factory.mktemp("browser")) as running:
        yield running, running.first()


@pytest.fixture
def tab(windows: tuple[Browser, Tab]) -> Tab:
    _, tab = windows
    tab.console.clear()
    tab.size(1280, 800)
    tab.dark(False)
    return tab


def answered(body: dict[str, Any], number: int) -> Script:
    """Answer with the question, the model and the seed."""
    question = body["messages"][-1]["content"]
    return say(f"Answer {number} of {body['model']} to {question} with {body['seed']}.")


def slowly(body: dict[str, Any], number: int) -> Script:
    return say("word " * 2000, pause_s=0.02) if number == 0 else answered(body, number)


def votes(server: ScriptedServer) -> list[dict[str, Any]]:
    rows = server.database.rows("SELECT * FROM judgements ORDER BY number")
    return [dict(zip(row.keys(), row, strict=True)) for row in rows]


def test_an_answer_streams_stops_and_is_made_again(tab: Tab, tmp_path: Path) -> None:
    server = ScriptedServer(tmp_path, slowly)
    with server.running() as address:
        enter(tab, address)
        shoot(tab, "empty")
        ask(tab, "Count!", wait=False)
        tab.wait("document.querySelector('.running .markdown')?.textContent.split(' ').length > 20")
        assert server.open_streams == 1
        tab.press("Escape")
        done(tab)
        until = time.monotonic() + 1
        while server.open_streams and time.monotonic() < until:
            time.sleep(0.02)
        # The server sees at once that nobody listens any more.
        assert (server.open_streams, server.left) == (0, 1)
        assert text_of(tab, f"{LAST} .tag") == "stopped"
        assert 20 < len(texts(tab)[1].split()) < 2000

        press_button(tab, LAST, "Regenerate")
        tab.wait(f"document.querySelector('{LAST} .pager .count')?.textContent === '2/2'")
        done(tab)
        first, second = server.requests
        assert first["messages"] == second["messages"] == [{"role": "user", "content": "Count!"}]
        assert first["seed"] != second["seed"]
        assert (first["temperature"], first["top_p"], first["max_tokens"]) == (1, 1, 512)
        assert "logprobs" not in first
        assert f"with {second['seed']}." in texts(tab)[1]
        press_button(tab, LAST, "Earlier branch")
        tab.wait(f"document.querySelector('{LAST} .pager .count').textContent === '1/2'")
        assert texts(tab)[1].startswith("word word")

        # Shift+Enter begins a line; a reload finds the conversation, and the branch that was shown.
        tab.evaluate("document.querySelector('#text').focus()")
        tab.open(tab.evaluate("location.href"))
        tab.wait(
            "document.body.dataset.state === 'ready' && document.querySelectorAll('.message').length === 2"
        )
        assert texts(tab)[1].startswith("word word")
        assert tab.console == []


def test_an_earlier_message_is_edited_and_both_branches_stay(tab: Tab, tmp_path: Path) -> None:
    server = ScriptedServer(tmp_path, answered)
    with server.running() as address:
        enter(tab, address)
        for question in ("One?", "Two?", "Three?"):
            ask(tab, question)
        assert [one["content"] for one in server.requests[-1]["messages"]][::2] == [
            "One?",
            "Two?",
            "Three?",
        ]
        before = texts(tab)
        assert len(before) == 6

        press_button(tab, ".message:nth-child(3)", "Edit")
        tab.wait("document.activeElement.matches('.editing textarea')")
        tab.type(" Or else?")
        tab.press("Enter", CONTROL)
        tab.wait("document.querySelectorAll('.message').length === 4")
        done(tab)
        assert texts(tab)[:3] == [*before[:2], "Two? Or else?"]
        assert [one["role"] for one in server.requests[-1]["messages"]] == [
            "user",
            "assistant",
            "user",
        ]
        shoot(tab, "branch")
        press_button(tab, ".message:nth-child(3)", "Earlier branch")
        tab.wait("document.querySelectorAll('.message').length === 6")
        assert texts(tab) == before

        # From an empty field, the arrow key edits the last question; Esc leaves it as it was.
        tab.evaluate("document.querySelector('#text').focus()")
        tab.press("ArrowUp")
        tab.wait("document.activeElement.value === 'Three?'")
        tab.press("Escape")
        tab.wait("!document.querySelector('.editing textarea')")
        assert texts(tab) == before and len(server.requests) == 4
        tab.press("k", CONTROL)
        tab.wait("!document.querySelector('.message')")
        assert (
            len(tab.evaluate("[...document.querySelectorAll('#conversations .title')].map(String)"))
            == 1
        )
        assert tab.console == []


def test_votes_are_blind_stored_and_preference_data(tab: Tab, tmp_path: Path) -> None:
    server = ScriptedServer(tmp_path, answered)
    with server.running() as address:
        enter(tab, address)
        tab.evaluate("document.querySelector('#compare').click()")
        tab.evaluate("document.querySelector('#other').value = 'base'")
        tab.evaluate("document.querySelector('#other').dispatchEvent(new Event('change'))")
        ask(tab, "Which?")
        assert {one["model"] for one in server.requests} == {"assistant", "base"}
        heads = (
            "[...document.querySelectorAll('.pair .message > header')].map((e) => e.textContent)"
        )
        assert tab.evaluate(heads) == ["A", "B"]
        shoot(tab, "pair")
        left = tab.evaluate("document.querySelector('.pair .message .markdown').textContent")
        tab.evaluate("document.activeElement.blur()")
        tab.press("b")
        tab.wait("document.querySelector('dialog[open] #asked')")
        tab.type("Ada")
        tab.press("Enter")
        tab.wait("document.querySelector('.vote').textContent.includes('Your vote: B is better.')")
        [vote] = votes(server)
        assert (vote["annotator"], vote["ranks"], vote["decision"]) == ("Ada", "[2,1]", "ranked")
        shown = json.loads(vote["shown"])
        asked = {one["model"]: one for one in server.requests}
        names = {"models:/assistant/3": "assistant", "models:/base/1": "base"}
        for one in shown:
            body = asked[names[one["model"]]]
            assert one["seed"] == body["seed"]
            assert one["settings"] == {"max_tokens": 512, "temperature": 1, "top_p": 1}
        assert names[shown[0]["model"]] in left
        assert all(name in "".join(tab.evaluate(heads)) for name in ("assistant/3", "base/1"))
        shoot(tab, "pair-voted")

        # Taken back and given again; the conversation continues from the better answer.
        press_button(tab, ".vote", "Take it back")
        tab.wait("document.querySelectorAll('.vote button').length === 4")
        press_button(tab, ".vote", "Tie")
        tab.wait("document.querySelector('.vote').textContent.includes('Your vote: Tie.')")
        press_button(tab, ".vote", "Continue with A")
        assert [row["undone"] is None for row in votes(server)] == [False, True]
        tab.evaluate("document.querySelector('#compare').click()")
        ask(tab, "And then?")
        assert server.requests[-1]["messages"][1] == {"role": "assistant", "content": left}
        assert text_of(tab, ".message:nth-child(2) .pager .count") in ("1/2", "2/2")

        # An answer that a person writes stands above the model's.
        press_button(tab, LAST, "Edit")
        tab.wait("document.activeElement.matches('.editing textarea')")
        tab.type(" Better.")
        tab.press("Enter", CONTROL)
        tab.wait("document.querySelector('#toast').textContent.includes('better than')")
        assert text_of(tab, f"{LAST} .speaker") == "Edited by you"
        edit = votes(server)[-1]
        assert edit["text"].endswith(" Better.") and edit["ranks"] == "[1]"
        export = export_preferences(server.database, tmp_path)
        lineage = json.loads(export.with_suffix(".json").read_text())
        assert lineage["counts"] == {"rank/ranked": 1, "rank/tie": 1, "undone": 1}
        assert tab.console == []


def test_probabilities_and_alternatives_are_shown(tab: Tab, tmp_path: Path) -> None:
    text = "Ünlikely wörds **stay** raw"
    server = ScriptedServer(tmp_path, lambda body, number: say(text))
    with server.running() as address:
        enter(tab, address)
        ask(tab, "Before?")
        tab.evaluate("document.activeElement.blur()")
        tab.press("p")
        assert "no probabilities were asked for" in text_of(tab, f"{LAST} .facts")
        ask(tab, "After?")
        assert server.requests[-1]["logprobs"] is True
        assert texts(tab)[3] == text
        classes = "[...document.querySelectorAll('.token')].map((e) => e.classList[1])"
        assert tab.evaluate(classes) == ["tint-0", "tint-1", "tint-2", "tint-3"]

        x, y = tab.middle(".token:nth-child(3)")
        tab.mouse("mouseMoved", x, y)
        tab.wait("!document.querySelector('#token-card').hidden")
        card = text_of(tab, "#token-card")
        assert "␣**stay**" in card and "22%" in card and "␣other1" in card
        assert text_of(tab, "#token-card .is-drawn code") == "␣**stay**"
        shoot(tab, "tokens")
        # By keys: one stop for all tokens, and the arrows from there.
        tab.evaluate("document.querySelector('.token').focus()")
        tab.press("ArrowRight")
        assert text_of(tab, "#token-card .drawn code") == "␣wörds"
        assert (
            tab.evaluate("document.activeElement.getAttribute('aria-describedby')") == "token-card"
        )
        tab.press("Escape")
        assert tab.evaluate("document.querySelector('#token-card').hidden")
        # Without them, the answer is formatted.
        tab.press("p")
        tab.wait(f"document.querySelector('{LAST} .markdown strong')?.textContent === 'stay'")
        assert tab.console == []


def test_the_oldest_turns_are_forgotten_in_the_open(tab: Tab, tmp_path: Path) -> None:
    server = ScriptedServer(tmp_path, lambda body, number: say("A short answer."), positions=40)
    with server.running() as address:
        enter(tab, address)
        for number in range(3):
            ask(tab, f"Question number {number} here?")
        # Half of the positions stay free for the answer; a turn has 4 + 4 and 4 + 3 tokens.
        sent = [len(one["messages"]) for one in server.requests]
        assert sent == [1, 1, 1] or sent == [1, 3, 1], sent
        assert all(
            sum(OVERHEAD + len(one["content"].split()) for one in body["messages"]) <= 20
            for body in server.requests[:-1]
        )
        assert "it no longer sees the 2 oldest questions and their answers" in text_of(
            tab, ".divider"
        )
        assert tab.evaluate("document.querySelectorAll('.forgotten').length") == 4
        assert all(body["max_tokens"] <= 40 for body in server.requests)
        assert text_of(tab, "#meter-text") == "11 of 40 positions"
        shoot(tab, "forgotten")
        ask(tab, "word " * 60, wait=False)
        tab.wait("document.querySelector('.problem:not([hidden])')")
        assert "it has 64 tokens, and the model has 40 positions" in text_of(
            tab, f"{LAST} .problem"
        )
        assert len(server.requests) == 3


def test_failures_are_sentences_and_can_be_retried(tab: Tab, tmp_path: Path) -> None:
    scripts: list[Script | int] = [
        say("It begins and", error="The replica was lost."), 503, say("Well.", thoughts="Let me see."),
    ]  # fmt: skip
    server = ScriptedServer(tmp_path, lambda body, number: scripts[number])
    with server.running() as address:
        enter(tab, address)
        ask(tab, HOSTILE, wait=False)
        tab.wait("document.querySelector('.problem:not([hidden])')")
        assert text_of(tab, ".problem p") == "The replica was lost."
        assert texts(tab) == [HOSTILE, "It begins and"]
        shoot(tab, "error")
        press_button(tab, ".problem", "Retry")
        tab.wait("document.querySelector('.problem p').textContent.startsWith('The queue')")
        assert text_of(tab, ".problem p") == "The queue is full. Try again in 2 s."
        # The browser itself reports the status.
        assert all("503" in one for one in tab.console)
        tab.console.clear()
        press_button(tab, ".problem", "Retry")
        tab.wait("document.querySelector('.problem').hidden")
        done(tab)
        assert texts(tab) == [HOSTILE, "Well."]
        assert text_of(tab, ".thoughts .text") == "Let me see."
        assert not tab.evaluate("document.querySelector('.thoughts').open")
        assert tab.evaluate("document.title") != "taken over"
        assert tab.evaluate("document.querySelectorAll('#thread img, #thread script').length") == 0
        assert tab.console == []
    ask(tab, "Are you there?", wait=False)
    tab.wait(f"document.querySelector('{LAST} .problem:not([hidden])')")
    assert text_of(tab, f"{LAST} .problem p") == "The server can't be reached."


def test_a_key_is_asked_for_and_kept_by_the_window(tab: Tab, tmp_path: Path) -> None:
    server = ScriptedServer(tmp_path, answered, key="sk-right")
    with server.running() as address:
        tab.open(f"{address}/")
        tab.wait(
            f"location.href.startsWith({address!r}) && document.querySelector('dialog[open] #asked')"
        )
        tab.type("sk-wrong")
        tab.press("Enter")
        tab.wait("document.querySelector('dialog[open]')?.textContent.includes('missing or wrong')")
        tab.type("sk-right")
        tab.press("Enter")
        tab.wait("document.body.dataset.state === 'ready'")
        ask(tab, "Hello?")
        assert texts(tab)[1].startswith("Answer 0")
        kept = tab.evaluate("JSON.stringify(localStorage) + document.cookie + location.href")
        assert "sk-" not in kept


def test_two_windows_add_to_one_conversation(
    windows: tuple[Browser, Tab], tab: Tab, tmp_path: Path
) -> None:
    server = ScriptedServer(tmp_path, lambda body, n: say(f"Answer {n}. " * 40, pause_s=0.01))
    with server.running() as address:
        enter(tab, address)
        ask(tab, "First?")
        other = windows[0].window(tab)
        enter(other, address, tab.evaluate("location.hash"))
        other.wait("document.querySelectorAll('.message').length === 2")
        # Both ask at the same time, from the same message.
        ask(tab, "Left?", wait=False)
        ask(other, "Right?", wait=False)
        for one, question in ((tab, "Left?"), (other, "Right?")):
            done(one)
            assert texts(one)[2] == question and len(texts(one)) == 4
            one.wait(
                "document.querySelector('.message:nth-child(3) .pager .count')?.textContent.endsWith('/2')"
            )
        press_button(tab, ".message:nth-child(3)", "Later branch")
        tab.wait("document.querySelector('.message:nth-child(3)').textContent.includes('Right?')")
        # Each window gets what the other one writes.
        right = json.dumps(texts(other)[3])
        tab.wait(f"document.querySelector('{LAST} .markdown').textContent === {right}")
        # What one window deletes, the other doesn't show any more.
        press_button(tab, "#conversations li", "Rename, export or delete First?")
        tab.wait("document.querySelector('dialog[open]')")
        press_button(tab, "dialog", "Delete")
        for one in (tab, other):
            one.wait("!document.querySelector('.message')")
            one.wait("document.querySelectorAll('#conversations .title').length === 0")
        press_button(tab, "#toast", "Undo")
        for one in (tab, other):
            one.wait("document.querySelectorAll('#conversations .title').length === 1")
        tab.wait("document.querySelectorAll('.message').length === 4")
        assert (tab.console, other.console) == ([], [])
        other.call("Page.close")


def test_a_chat_of_200_messages_stays_fast(tab: Tab, tmp_path: Path) -> None:
    text = "More **words** in `a` list:\n\n" + "\n".join(f"- item {n} of *many*" for n in range(60))
    tokens = [text[at : at + 4] for at in range(0, len(text), 4)]
    server = ScriptedServer(
        tmp_path, lambda body, number: Script(tokens, pause_s=0.002), positions=10**6
    )
    with server.running() as address:
        enter(tab, address)
        started = time.monotonic()
        tab.evaluate(IMPORTED % json.dumps(json.dumps(long_chat(200))))
        tab.wait("document.querySelectorAll('.message').length === 200")
        assert time.monotonic() - started < 3
        shoot(tab, "long")
        # While an answer grows, nothing else is touched, and no frame takes long.
        tab.evaluate(OBSERVED)
        ask(tab, "Once more?")
        assert len(texts(tab)) == 202 and len(server.requests[0]["messages"]) == 201
        touched = tab.evaluate("[...touched].filter(Boolean)")
        latest = tab.evaluate(
            "[...document.querySelectorAll('.message')].slice(-3).map((e) => e.dataset.id)"
        )
        assert set(touched) <= set(latest)
        assert tab.evaluate("longest") < 250
        assert tab.evaluate("document.querySelectorAll('.message:last-child li').length") == 60
        assert tab.console == []


def test_conversations_are_renamed_exported_and_imported(tab: Tab, tmp_path: Path) -> None:
    server = ScriptedServer(tmp_path, answered)
    with server.running() as address:
        enter(tab, address)
        ask(tab, "What is kept?")
        before = texts(tab)
        # What would be saved as a file.
        tab.evaluate(CAUGHT)

        def manage(label: str) -> None:
            tab.evaluate("document.querySelector('#conversations .more').click()")
            tab.wait("document.querySelector('dialog[open]')")
            press_button(tab, "dialog", label)
            tab.wait("!document.querySelector('dialog[open]')")

        manage("Export as Markdown")
        tab.wait("window.saved")
        assert tab.evaluate("saved").startswith(
            "# What is kept?\n\n## You\n\nWhat is kept?\n\n## assistant/3\n\n"
        )
        tab.evaluate("window.saved = null")
        manage("Export as JSON")
        tab.wait("window.saved")
        saved = tab.evaluate("saved")
        tab.evaluate("document.querySelector('#conversations .more').click()")
        tab.wait("document.querySelector('dialog[open]')")
        tab.type("Another name")
        tab.press("Enter")
        tab.wait("document.querySelector('#conversations .title').textContent === 'Another name'")

        tab.evaluate(IMPORTED % json.dumps(saved))
        tab.wait("document.querySelectorAll('#conversations .title').length === 2")
        tab.wait(
            "document.querySelectorAll('.message').length === 2 && document.title === 'What is kept?'"
        )
        assert texts(tab) == before
        for wrong, why in (
            ("{", "isn't JSON"),
            ("{}", "isn't an export"),
            (saved.replace('"parent": ""', '"parent": "x"'), "isn't there"),
        ):
            tab.evaluate(IMPORTED % json.dumps(wrong))
            tab.wait(f"document.querySelector('#toast').textContent.includes({why!r})")
        assert tab.evaluate("document.querySelectorAll('#conversations .title').length") == 2

        # Settings of a conversation, and where its model comes from.
        tab.evaluate("document.querySelector('#settings').click()")
        tab.wait("document.querySelector('#setting-seed')")
        shoot(tab, "settings")
        tab.evaluate("document.querySelector('#setting-seed').focus()")
        tab.type("7")
        tab.evaluate("document.querySelector('#setting-system').focus()")
        tab.type("Be brief.")
        tab.press("Escape")
        ask(tab, "Again?")
        assert server.requests[-1]["seed"] == 7
        assert server.requests[-1]["messages"][0] == {"role": "system", "content": "Be brief."}
        press_button(tab, LAST, "Regenerate")
        done(tab)
        tab.wait(f"document.querySelector('{LAST} .pager .count').textContent === '2/2'")
        assert server.requests[-1]["seed"] == 8
        tab.evaluate("document.querySelector('#lineage').click()")
        tab.wait("document.querySelectorAll('.lineage > li').length === 3")
        card = text_of(tab, ".lineage")
        assert "models:/assistant/3" in card and "ffffffffffff…" in card and "9a5fc957abc2" in card
        shoot(tab, "lineage")
        tab.press("Escape")
        assert tab.console == []


def test_markdown_is_built_safely_and_as_it_grows(tab: Tab, tmp_path: Path) -> None:
    with ScriptedServer(tmp_path, answered).running() as address:
        enter(tab, address)
        found = tab.evaluate(RENDER % json.dumps([*MARKDOWN]))
        assert dict(zip(MARKDOWN, found["whole"], strict=True)) == MARKDOWN
        # Built while it grows, it becomes the same; and no text takes quadratic time.
        assert found["same"] and max(found["slow"]) < 500, found["slow"]
        assert tab.console == []


def test_it_fits_a_phone(tab: Tab, tmp_path: Path) -> None:
    server = ScriptedServer(
        tmp_path,
        lambda body, number: say("| a | b |\n|---|---|\n| 1 | " + "wide" * 60 + " |\n\nDone."),
    )
    with server.running() as address:
        tab.size(390, 844, mobile=True)
        enter(tab, address)
        tab.evaluate("document.querySelector('#text').focus()")
        tab.type("On a phone?")
        tab.evaluate("document.querySelector('#send').click()")
        done(tab)
        assert tab.evaluate("document.documentElement.scrollWidth") == 390
        shoot(tab, "phone")
        tab.evaluate("document.querySelector('#menu').click()")
        tab.wait("document.querySelector('#sidebar').getBoundingClientRect().left === 0")
        shoot(tab, "phone-drawer")
        tab.evaluate("document.querySelector('#conversations .title').click()")
        tab.wait("!document.body.classList.contains('drawer')")
        tab.evaluate("document.querySelector('#compare').click()")
        tab.evaluate("document.querySelector('#text').focus()")
        tab.type("And two?")
        tab.evaluate("document.querySelector('#send').click()")
        tab.wait("document.querySelector('.pair')")
        done(tab)
        assert tab.evaluate("document.documentElement.scrollWidth") == 390
        tab.dark(True)
        shoot(tab, "phone-pair-dark")
