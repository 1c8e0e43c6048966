"""The page in a real browser, driven by keys, a mouse and a finger."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from annotate.browser import CHROMIUM, CONTROL, SHIFT, Tab, browser
from annotate.site_factory import TOKEN, ask, asked, served
from raymill.annotate.app import Site
from raymill.annotate.database import Database
from raymill.annotate.items import answers_to

pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="there is no Chromium (chromium, google-chrome) on the PATH to drive"
)
SHOTS = os.environ.get("RAYMILL_SHOTS")  # a folder for pictures of the page
HOSTILE = "<img src=x onerror=\"document.title='taken over'\"><script>alert(1)</script>\n"
GUIDE = "# How to rank\n\n- Be **fair**.\n- Use `?` for help.\n\n<b>Not bold.</b>"


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with browser(tmp_path_factory.mktemp("browser")) as tab:
        yield tab


def enter(tab: Tab, address: str, name: str | None = "Ada") -> None:
    """Open the printed address and enter a name if the page asks for one."""
    tab.console.clear()
    tab.size(1280, 800)
    tab.dark(False)
    tab.open(f"{address}/?token={TOKEN}")
    tab.wait("location.search === '' && document.querySelector('#name-dialog')")
    tab.wait("document.querySelector('#name-dialog[open]') || document.querySelector('#work > *')")
    if name is not None and tab.evaluate("Boolean(document.querySelector('#name-dialog[open]'))"):
        tab.type(name)
        tab.press("Enter")
    tab.wait("document.querySelector('#work > *')")
    settle(tab)


def settle(tab: Tab) -> None:
    """Wait longer than the page ignores a repeated key."""
    tab.evaluate("new Promise((done) => setTimeout(done, 300))")


def shoot(tab: Tab, name: str) -> None:
    if SHOTS:
        tab.shoot(Path(SHOTS) / f"{name}.png")


def decided(database: Database) -> list[dict[str, Any]]:
    return [
        {
            "decision": row["decision"],
            "ranks": row["ranks"] and json.loads(row["ranks"]),
            "text": row["text"],
            "undone": row["undone"] is not None,
            "annotator": row["annotator"],
            "seconds": row["seconds"],
            "reason": row["reason"],
            "item": row["item_id"],
        }
        for row in database.rows("SELECT * FROM judgements ORDER BY number")
    ]


def decide(tab: Tab, database: Database, key: str, modifiers: int = 0) -> dict[str, Any]:
    """Press a key that makes a decision; return the recorded decision."""
    before = len(decided(database))
    tab.press(key, modifiers)
    tab.wait("document.querySelector('#toast:not([hidden])')")
    for _ in range(100):
        if len(decided(database)) > before:
            break
        tab.evaluate("new Promise((done) => setTimeout(done, 30))")
    settle(tab)
    return decided(database)[-1]


def pick(result: dict[str, Any], *names: str) -> tuple[Any, ...]:
    return tuple(result[name] for name in names)


def test_two_answers_are_compared_with_the_keyboard_alone(tab: Tab, tmp_path: Path) -> None:
    database, _ = asked(tmp_path, 9, write=lambda q, seed, n: f"{HOSTILE}Answer {n} to {q}")
    with served(Site(database, "rank", GUIDE, target=1)) as address:
        enter(tab, address)
        # Neither the address nor scripts know the token.
        assert TOKEN not in tab.evaluate("location.href + document.cookie")
        texts = tab.evaluate(
            "[...document.querySelectorAll('.pair .text')].map((e) => e.textContent)"
        )
        assert len(texts) == 2 and all(text.startswith(HOSTILE) for text in texts)
        assert (
            tab.evaluate("document.querySelectorAll('#work img, #work script, #guide b').length")
            == 0
        )
        assert tab.evaluate("document.querySelector('#guide strong').textContent") == "fair"
        assert tab.evaluate("document.title") == "Rank answers"
        shoot(tab, "pair")

        found = decide(tab, database, "ArrowLeft")
        assert pick(found, "decision", "ranks", "annotator") == ("ranked", [1, 2], "Ada")
        assert 0.2 < found["seconds"] < 60
        assert "A is better" in tab.evaluate("document.querySelector('#announcement').textContent")
        assert pick(decide(tab, database, "ArrowRight"), "ranks") == ([2, 1],)
        assert pick(decide(tab, database, "t"), "decision") == ("tie",)
        assert pick(decide(tab, database, "x"), "decision") == ("bad",)
        assert pick(decide(tab, database, "s"), "decision") == ("skip",)
        assert tab.evaluate("document.querySelector('#counts').textContent") == (
            "4 by you · 4 of 9 by all"
        )
        assert tab.evaluate("document.querySelector('#track').getAttribute('aria-valuenow')") == "4"

        # Undo shows the same question again.
        tab.press("u")
        tab.wait("document.querySelector('#counts').textContent.startsWith('4')")
        tab.wait("document.querySelector('#announcement').textContent === 'Undone'")
        assert decided(database)[-1]["undone"]
        settle(tab)
        found = decide(tab, database, "b")
        assert found["ranks"] == [2, 1] and found["item"] == decided(database)[-2]["item"]

        # Help opens, and keys don't decide behind it.
        tab.press("?")
        tab.wait("document.querySelector('#keys-dialog[open]')")
        shoot(tab, "keys")
        tab.press("ArrowLeft")
        tab.press("Escape")
        tab.wait("!document.querySelector('dialog[open]')")
        assert len(decided(database)) == 6
        # So it is with the guide, whose state stays over a reload.
        tab.press("i")
        tab.wait("document.querySelector('#guide').hidden")

        # A better one: edited, changed, ranked first; the others are still compared.
        tab.press("e")
        tab.wait("document.querySelector('#editor[open]')")
        tab.press("Enter", CONTROL)  # unchanged, it is no better one
        tab.wait("document.querySelector('#editor-hint.wrong')")
        tab.type(" But better, with <i>signs</i>.")
        shoot(tab, "editor")
        tab.press("Enter", CONTROL)
        tab.wait("document.querySelector('.yours')")
        shoot(tab, "yours")
        found = decide(tab, database, "ArrowRight")
        assert found["ranks"] == [2, 1]
        assert found["text"].endswith(" But better, with <i>signs</i>.")
        tab.dark(True)
        shoot(tab, "pair-dark")
        assert tab.console == []


def test_the_buttons_decide_too_and_a_held_key_decides_once(tab: Tab, tmp_path: Path) -> None:
    database, _ = asked(tmp_path, 4)
    with served(Site(database, "rank", GUIDE, target=1)) as address:
        enter(tab, address)
        tab.click("#actions button:nth-child(3)")
        tab.wait("document.querySelector('#counts').textContent.startsWith('1')")
        settle(tab)
        for _ in range(3):  # faster than anyone reads
            tab.press("ArrowLeft")
        tab.wait("document.querySelector('#counts').textContent.startsWith('2')")
        settle(tab)
        assert [one["ranks"] for one in decided(database)] == [[2, 1], [1, 2]]
        # With the focus on a button, Enter presses it.
        tab.evaluate("document.querySelector('#actions button:nth-child(2)').focus()")
        found = decide(tab, database, "Enter")
        assert found["decision"] == "tie"


def test_four_answers_are_put_in_order(tab: Tab, tmp_path: Path) -> None:
    database, _ = asked(tmp_path, 5, answers=4)

    def letters() -> str:
        return str(
            tab.evaluate(
                "[...document.querySelectorAll('.ranking .badge')].map((e) => e.textContent).join('')"
            )
        )

    with served(Site(database, "rank", GUIDE, target=1)) as address:
        enter(tab, address)
        assert letters() == "ABCD"
        shoot(tab, "ranking")
        # By keys: B to the top, D level with C.
        tab.press("ArrowDown")
        tab.press("ArrowDown")
        tab.press("ArrowUp", SHIFT)
        assert letters() == "BACD"
        tab.press("ArrowDown")
        tab.press("ArrowDown")
        tab.press("ArrowDown")
        tab.press("=")
        assert (
            tab.evaluate("document.activeElement.getAttribute('aria-label')") == "Answer D, rank 3"
        )
        shoot(tab, "ranking-tied")
        found = decide(tab, database, "Enter")
        assert pick(found, "decision", "ranks") == ("ranked", [2, 1, 3, 3])

        # By mouse: D to the top, then A to the end; by a number, A to the second place.
        tab.drag("li[data-index='3'] .handle", "li[data-index='0']", by=-20)
        assert letters() == "DABC"
        tab.drag("li[data-index='0'] .handle", "li[data-index='2']", by=20)
        assert letters() == "DBCA"
        tab.press("2")
        assert letters() == "DABC"
        tab.press("e")
        tab.wait("document.querySelector('#editor[open]')")
        tab.type(" Better.")
        tab.press("Enter", CONTROL)
        tab.wait("document.querySelector('.yours')")
        assert tab.evaluate("document.querySelector('.ranking .rank-number').textContent") == "2"
        shoot(tab, "ranking-yours")
        order = letters()
        found = decide(tab, database, "Enter")
        assert found["ranks"] == [order.index(letter) + 1 for letter in "ABCD"]
        assert found["text"].endswith(" Better.")

        # Taken back, all of it is there again.
        tab.press("u")
        tab.wait("document.querySelector('.yours')")
        assert letters() == order
        settle(tab)
        assert decide(tab, database, "t")["ranks"] == [1, 1, 1, 1]
        assert decide(tab, database, "x")["decision"] == "bad"
        assert tab.console == []


def test_it_fits_a_phone_and_a_finger_drags(tab: Tab, tmp_path: Path) -> None:
    database, items = asked(
        tmp_path, 3, answers=3, write=lambda q, s, n: f"Answer {n}: " + "word " * 30
    )
    with served(Site(database, "rank", GUIDE, target=1)) as address:
        enter(tab, address)
        tab.evaluate("localStorage.setItem('raymill-guide', 'closed')")
        tab.size(390, 844, mobile=True)
        tab.open(f"{address}/")
        tab.wait("document.querySelector('.ranking')")
        settle(tab)
        assert tab.evaluate("document.documentElement.scrollWidth") == 390
        shoot(tab, "phone-ranking")
        x, y = tab.middle("li[data-index='2'] .handle")
        _, goal = tab.middle("li[data-index='0'] .handle")
        points = [[{"x": x, "y": y + (goal - y) * step / 10}] for step in range(11)]
        tab.call("Input.dispatchTouchEvent", type="touchStart", touchPoints=points[0])
        for point in points[1:]:
            tab.call("Input.dispatchTouchEvent", type="touchMove", touchPoints=point)
        tab.call("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])
        order = "[...document.querySelectorAll('.ranking li')].map((e) => e.dataset.index).join('')"
        assert tab.evaluate(order) == "201"
        tab.evaluate("document.querySelector('#actions button').click()")
        tab.wait("document.querySelector('#counts').textContent.startsWith('1')")
        assert decided(database)[0]["ranks"] == [2, 3, 1]
        assert len(answers_to(database, items[0].item_id)) == 3


def test_a_server_that_was_away_loses_nothing(tab: Tab, tmp_path: Path) -> None:
    database, _ = asked(tmp_path, 3)
    with served(Site(database, "rank", GUIDE, target=1)) as address:
        enter(tab, address)
        # The first answers get lost on their way: what was sent arrives twice, and counts once.
        tab.evaluate(
            "(() => { const real = window.fetch; let lost = 2; window.fetch = async (...given) => {"
            "const found = await real(...given); if (lost-- > 0) throw new TypeError('lost');"
            "return found; }; })()"
        )
        tab.press("ArrowLeft")
        tab.wait("document.querySelector('#trouble:not([hidden])')")
        shoot(tab, "trouble")
        tab.wait("document.querySelector('#counts').textContent.startsWith('1 ')")
        tab.wait("document.querySelector('#trouble').hidden")
        assert [one["ranks"] for one in decided(database)] == [[1, 2]]


def test_one_writes_and_another_reviews(tab: Tab, tmp_path: Path) -> None:
    database, _ = ask(tmp_path, ["Why is the sky blue?", "Why is it red?"], "write")
    with served(Site(database, "write", GUIDE, target=1)) as address:
        enter(tab, address)
        tab.wait("document.activeElement.id === 'writing'")
        tab.type("Because air scatters\nshort waves more.")
        shoot(tab, "write")
        tab.open(f"{address}/")  # a draft outlives the page
        tab.wait("document.querySelector('#writing')?.value.startsWith('Because')")
        settle(tab)
        found = decide(tab, database, "Enter", CONTROL)
        assert found["text"] == "Because air scatters\nshort waves more."
        tab.wait("document.querySelector('#writing')?.value === ''")
        tab.press("Escape")
        assert decide(tab, database, "s")["decision"] == "skip"
        tab.wait("document.body.dataset.state === 'done'")
        shoot(tab, "done")

        tab.evaluate("localStorage.setItem('raymill-name', 'Bob')")
        tab.open(f"{address}/")
        tab.wait("document.body.dataset.state === 'review'")
        settle(tab)
        shoot(tab, "review")
        tab.press("r")
        tab.wait("document.querySelector('#editor[open]')")
        tab.type("Say which waves.")
        tab.press("Escape")  # changed their mind
        tab.wait("!document.querySelector('dialog[open]')")
        tab.press("e")
        tab.wait("document.querySelector('#editor[open]')")
        assert "short waves" in tab.evaluate("document.querySelector('#editor-text').value")
        tab.type(" Red is left over in the evening.")
        tab.press("Enter", CONTROL)
        tab.wait("document.body.dataset.state === 'write'")
        found = decided(database)[-1]
        assert pick(found, "decision", "annotator") == ("edit", "Bob")
        assert found["text"].endswith("waves more. Red is left over in the evening.")
        tab.evaluate("localStorage.setItem('raymill-name', 'Ada')")
        assert tab.console == []


def test_a_restarted_server_asks_for_its_new_address(tab: Tab, tmp_path: Path) -> None:
    database, _ = asked(tmp_path, 1)
    with served(Site(database, "rank", GUIDE, target=1)) as address:
        enter(tab, address)
        tab.call("Network.clearBrowserCookies")
        tab.press("t")
        tab.wait("document.querySelector('#trouble')?.textContent.includes('open the address')")
        assert decided(database) == []
