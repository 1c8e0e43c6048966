"""Actions of tests on the chat page, and readings from it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from annotate.browser import Tab

SHOTS = os.environ.get("RAYMILL_SHOTS")  # a folder for pictures of the page
LAST = ".message:last-child"
IMPORTED = """(async () => {
  const transfer = new DataTransfer();
  transfer.items.add(new File([%s], 'chat.json', { type: 'application/json' }));
  document.querySelector('#file').files = transfer.files;
  document.querySelector('#file').dispatchEvent(new Event('change'));
})()"""
# Collect the messages in which anything changes, and the longest task.
OBSERVED = """
window.touched = new Set();
window.longest = 0;
new MutationObserver((records) => {
  for (const { target } of records) {
    const element = target.nodeType === Node.TEXT_NODE ? target.parentElement : target;
    touched.add(element.closest('.message')?.dataset.id);
  }
}).observe(document.querySelector('#thread'), {
  subtree: true, childList: true, characterData: true, attributes: true,
});
new PerformanceObserver((list) => {
  for (const { duration } of list.getEntries()) longest = Math.max(longest, duration);
}).observe({ type: 'longtask' });
"""
# Keep what would be saved as a file.
CAUGHT = """HTMLAnchorElement.prototype.click = () => {};
URL.createObjectURL = (blob) => {
  blob.text().then((text) => (window.saved = text));
  return 'about:blank';
}"""


def enter(tab: Tab, address: str, place: str = "") -> None:
    tab.open(f"{address}/{place}")
    tab.wait(f"location.href.startsWith({address!r}) && document.body.dataset.state === 'ready'")


def ask(tab: Tab, text: str, wait: bool = True) -> None:
    tab.evaluate("document.querySelector('#text').focus()")
    tab.type(text)
    tab.press("Enter")
    if wait:
        done(tab)


def done(tab: Tab) -> None:
    """Wait until an answer has begun and none is being written."""
    tab.wait("document.querySelector('.message.assistant')")
    tab.wait("document.querySelector('#stop').hidden && !document.querySelector('.running')")


def texts(tab: Tab) -> list[str]:
    """Return the texts of the messages."""
    found: list[str] = tab.evaluate(
        "[...document.querySelectorAll('.message')].map((e) => "
        "(e.querySelector('.body > .text:not([hidden]), .markdown:not([hidden])')).textContent)"
    )
    return found


def text_of(tab: Tab, selector: str) -> str:
    return str(tab.evaluate(f"document.querySelector({selector!r})?.textContent ?? ''"))


def press_button(tab: Tab, within: str, label: str) -> None:
    """Click the button with this label, wherever it is scrolled to."""
    tab.evaluate(
        f"[...document.querySelectorAll({within!r} + ' button')]"
        ".find((one) => (one.getAttribute('aria-label') ?? one.firstElementChild.textContent)"
        f" === {label!r}).click()"
    )


def shoot(tab: Tab, name: str) -> None:
    if SHOTS:
        tab.evaluate("new Promise((done) => setTimeout(done, 150))")
        tab.shoot(Path(SHOTS) / f"{name}.png")


def long_chat(messages: int) -> dict[str, Any]:
    """An exported conversation of that many messages with Markdown."""
    answer = "Some **bold** text and `code`.\n\n- one\n- two\n\n```python\nx = 1\n```\n\nThe end."
    made = [
        {
            "id": f"m{n}", "parent": f"m{n - 1}" if n else "", "role": "assistant" if n % 2 else "user",
            "content": answer if n % 2 else f"Question {n}?", "time": n + 1, "finish": "stop",
        }
        for n in range(messages)
    ]  # fmt: skip
    conversation = {"title": "A long chat", "created": 1, "settings": {}, "messages": made}
    return {"format": "raymill-chat", "version": 1, "conversations": [conversation]}
