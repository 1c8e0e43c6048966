"""HTTP API of the page: access control, validation, and responses that name no model or annotator."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from annotate.site_factory import SECRET_MODEL, TOKEN, ask, asked
from raymill.annotate.access import BODY_BYTES
from raymill.annotate.app import PAGE, Site, create_app
from raymill.annotate.database import Database
from raymill.annotate.items import answers_to, shown_order

AUTHORIZED = {"authorization": f"Bearer {TOKEN}"}
_ids = itertools.count()


def fresh() -> str:
    return f"submission-{next(_ids)}"


class Person:
    """Client that acts as one annotator."""

    def __init__(self, client: TestClient, name: str) -> None:
        self._client, self._name = client, name
        self.situation: dict[str, Any] = {}

    def post(self, path: str, **body: Any) -> Any:
        return self._client.post(f"/api/{path}", json={"annotator": self._name, **body})

    def do(self, path: str, **body: Any) -> dict[str, Any]:
        response = self.post(path, **body)
        assert response.status_code == 200, response.text
        self.situation = response.json()
        return self.situation

    def next(self) -> dict[str, Any]:
        return self.do("next")

    def decide(self, path: str, decision: str, **given: Any) -> dict[str, Any]:
        task = self.situation["task"]
        return self.do(
            path,
            **{"id": fresh(), "item": task["item"], "seconds": 1, "decision": decision, **given},
        )


def client_of(site: Site, token: str = TOKEN) -> TestClient:
    return TestClient(create_app(site, token), headers=AUTHORIZED)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database, _ = asked(tmp_path, 6, answers=3)
    with database:
        yield database


@pytest.fixture
def client(database: Database) -> TestClient:
    return client_of(Site(database, "rank", "# Guide", target=1))


def test_nobody_gets_in_without_the_token(database: Database) -> None:
    app = create_app(Site(database, "rank", "Guide", 1), TOKEN)
    stranger = TestClient(app)
    paths = ["/", "/page.js", "/page.css", "/api/about", "/api/nothing", "/docs", "/openapi.json"]
    for path in paths:
        assert stranger.get(path).status_code == 401, path
        assert stranger.get(path, params={"token": "wrong"}).status_code == 401, path
    # The token in an address opens the front door alone.
    assert stranger.get("/api/about", params={"token": TOKEN}).status_code == 401
    wrong = ["", "Bearer", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", f"Basic {TOKEN}", "Bearer é"]
    for header in wrong:
        given = {"authorization": header.encode("latin-1")}
        assert stranger.post("/api/next", json={}, headers=given).status_code == 401
    for cookie in ("x=y", f"raymill={TOKEN}", "a\x01b"):
        assert stranger.get("/", headers={"cookie": cookie}).status_code == 401
    assert stranger.get("/api/about", headers=AUTHORIZED).status_code == 200
    assert stranger.get("/docs", headers=AUTHORIZED).status_code == 404


def test_the_printed_address_hands_out_a_cookie(database: Database) -> None:
    app = create_app(Site(database, "rank", "Guide", 1), TOKEN)
    visitor = TestClient(app)
    entered = visitor.get("/", params={"token": TOKEN})
    assert entered.status_code == 200 and entered.headers["refresh"] == "0; url=/"
    cookie = entered.headers["set-cookie"]
    assert "HttpOnly" in cookie and "SameSite=strict" in cookie and "Path=/" in cookie
    page = visitor.get("/")
    assert page.status_code == 200 and "Raymill" in page.text and TOKEN not in page.text
    assert visitor.get("/page.js").headers["content-type"].startswith("text/javascript")
    assert visitor.post("/api/next", json={"annotator": "Ada"}).status_code == 200
    # Another page on the same host has another cookie.
    other = TestClient(create_app(Site(database, "rank", "Guide", 1), "another-token"))
    other.cookies = visitor.cookies
    assert other.get("/").status_code == 401


def test_every_answer_has_the_headers_that_keep_a_page_to_itself(client: TestClient) -> None:
    stranger = TestClient(client.app)
    responses = [
        client.get("/"), client.get("/page.css"), client.get("/nothing"), stranger.get("/"),
        client.post("/api/next", json={"annotator": "Ada"}), client.post("/api/next", json=[]),
        client.post("/api/next", content=b"x" * (BODY_BYTES + 1)),
    ]  # fmt: skip
    for response in responses:
        assert response.headers["content-security-policy"].startswith("default-src 'self'")
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["referrer-policy"] == "no-referrer"
        assert response.headers["cache-control"] == "no-store"


def test_the_page_needs_nothing_from_elsewhere() -> None:
    for path in PAGE.iterdir():
        text = path.read_text(encoding="utf-8")
        others = text.replace("http://www.w3.org/2000/svg", "")
        assert "http://" not in others and "https://" not in others, path
        for hazard in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
            assert hazard not in text, path
    page = (PAGE / "index.html").read_text()
    assert " style=" not in page and " onclick" not in page  # the policy forbids both


def test_only_small_json_is_taken(client: TestClient) -> None:
    body = json.dumps({"annotator": "Ada"})
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""):
        response = client.post("/api/next", content=body, headers={"content-type": kind})
        assert response.status_code == 415, kind
    kind = {"content-type": "application/json; charset=utf-8"}
    assert client.post("/api/next", content=body, headers=kind).status_code == 200
    assert client.post("/api/next", content="{", headers=kind).status_code == 422
    large = iter([b'{"annotator": "'] + [b"a" * 65536] * 9 + [b'"}'])  # no length is announced
    assert client.post("/api/next", content=large, headers=kind).status_code == 413


@pytest.mark.parametrize(
    "wrong",
    [
        {"annotator": "<b>"}, {"annotator": 3}, {"annotator": "a" * 300}, {"id": "short"},
        {"id": "no spaces allowed"}, {"item": "../../etc"}, {"item": "0" * 32}, {"seconds": -1},
        {"seconds": "soon"}, {"seconds": 1e9}, {"decision": "best"}, {"ranks": "1, 2"},
        {"ranks": [1.5, 2, 3]}, {"ranks": [1, 2]}, {"text": "x" * 100_001}, {"judge": "human"},
    ],
)  # fmt: skip
def test_what_a_page_wouldnt_send_is_refused(client: TestClient, wrong: dict[str, Any]) -> None:
    ada = Person(client, "Ada")
    item = ada.next()["task"]["item"]
    body = {
        "annotator": "Ada", "id": fresh(), "item": item, "seconds": 1.0, "decision": "ranked",
        "ranks": [1, 2, 3], **wrong,
    }  # fmt: skip
    response = client.post("/api/rank", json=body)
    assert response.status_code in (409, 422) and response.json()["error"]
    assert ada.next()["progress"]["mine"] == 0


def test_infinities_are_no_seconds(client: TestClient) -> None:
    ada = Person(client, "Ada")
    item = ada.next()["task"]["item"]
    body = (
        f'{{"annotator": "Ada", "id": "{fresh()}", "item": "{item}", "seconds": Infinity, '
        '"decision": "bad"}'
    )
    kind = {"content-type": "application/json"}
    assert client.post("/api/rank", content=body, headers=kind).status_code == 422


def test_nobody_is_told_which_model_or_who(database: Database, client: TestClient) -> None:
    ada, bob = Person(client, "Ada"), Person(client, "Bob")
    told = [client.get("/api/about").text, json.dumps(ada.next()), json.dumps(bob.next())]
    while ada.situation["task"]:
        told.append(json.dumps(ada.decide("rank", "ranked", ranks=[2, 1, 3])))
    told.append(json.dumps(ada.do("undo", id=fresh())))
    told.append(ada.post("rank", id="x").text)
    told += [client.get(f"/{path.name}").text for path in PAGE.iterdir()]
    everything = "\n".join(told)
    for secret in (SECRET_MODEL, "sphinx", "digest of", "temperature", '"seed"', "sha256"):
        assert secret not in everything
    assert "Bob" not in json.dumps(ada.situation) and TOKEN not in everything


def test_answers_come_shuffled_and_the_order_is_kept(
    database: Database, client: TestClient
) -> None:
    people = [Person(client_of(Site(database, "rank", "", 9)), name) for name in ("Ada", "Bob")]
    orders = set()
    for person in people:
        task = person.next()["task"]
        item, texts = task["item"], [answer["text"] for answer in task["answers"]]
        made = [answer.text for answer in answers_to(database, item)]
        order = tuple(made.index(text) for text in texts)
        name = "Ada" if person is people[0] else "Bob"
        assert order == shown_order(name, item, 3)
        orders.add(order)
        person.decide("rank", "ranked", ranks=[1, 2, 3])
        [row] = database.rows("SELECT * FROM judgements WHERE annotator = ?", name)
        assert tuple(one["place"] for one in json.loads(row["shown"])) == order
        assert json.loads(row["ranks"]) == [1, 2, 3]  # of the answers as they were shown


def test_progress_undo_and_the_end(client: TestClient) -> None:
    ada, bob = Person(client, "Ada"), Person(client, "ada lovelace")
    assert ada.next()["progress"] == {
        "mine": 0, "done": 0, "total": 6, "ready": 6, "items": 6, "reviews": 0,
    }  # fmt: skip
    first = ada.situation["task"]["item"]
    bob.next()
    bob.decide("rank", "bad")
    after = ada.decide("rank", "ranked", ranks=[1, 1, 2], text="Much better.")
    assert (after["progress"]["mine"], after["progress"]["done"]) == (1, 2)
    undone = ada.do("undo", id=fresh())
    assert undone["task"]["item"] == first and undone["progress"]["mine"] == 0
    assert undone["task"]["before"] == {
        "decision": "ranked", "ranks": [1, 1, 2], "text": "Much better.", "reason": None,
    }  # fmt: skip
    assert ada.post("undo", id=fresh()).status_code == 409
    ada.decide("rank", "skip")
    while ada.situation["task"]:
        ada.decide("rank", "bad")
    # Bob judged one item and has another before him; Ada judged three of the rest and skipped one.
    assert ada.situation["state"] == "busy" and ada.situation["progress"]["mine"] == 3
    bob.decide("rank", "bad")
    assert bob.situation["task"]["item"] == first  # which Ada skipped
    bob.decide("rank", "bad")
    assert bob.situation["state"] == ada.next()["state"] == "done"
    assert ada.situation["progress"]["done"] == 6


def test_a_retried_post_counts_once(client: TestClient) -> None:
    ada = Person(client, "Ada")
    item = ada.next()["task"]["item"]
    body = {"id": fresh(), "item": item, "seconds": 1, "decision": "ranked", "ranks": [1, 2, 3]}
    first, again = ada.do("rank", **body), ada.do("rank", **body)
    assert first == again and first["progress"]["mine"] == 1 and first["task"]["item"] != item
    refused = ada.post("rank", **{**body, "id": fresh()})
    assert refused.status_code == 409 and "already" in refused.json()["error"]


def test_hostile_answers_travel_as_text(tmp_path: Path) -> None:
    hostile = '</script><img src=x onerror="alert(1)">\u202e\x00'
    database, _ = asked(tmp_path, 1, write=lambda question, seed, number: f"{hostile}{number}")
    response = client_of(Site(database, "rank", "", 1)).post("/api/next", json={"annotator": "Ada"})
    assert response.headers["content-type"] == "application/json"
    assert {answer["text"] for answer in response.json()["task"]["answers"]} == {
        f"{hostile}0", f"{hostile}1",
    }  # fmt: skip


def test_the_page_waits_for_answers_and_says_when_none_will_come(tmp_path: Path) -> None:
    database, _ = ask(tmp_path, ["One?", "Two?"])
    waiting = Person(client_of(Site(database, "rank", "", 1)), "Ada").next()
    assert waiting["state"] == "preparing" and waiting["task"] is None
    failed = Site(database, "rank", "", 1, failure=lambda: "it broke")
    told = Person(client_of(failed), "Ada").next()
    assert (told["state"], told["why"]) == ("failed", "it broke")
    database.close()
    database, _ = asked(tmp_path, ["Same?"], write=lambda question, seed, number: "the same")
    told = Person(client_of(Site(database, "rank", "", 1)), "Ada").next()
    assert told["state"] == "failed" and "nothing to compare" in told["why"]


def test_written_answers_are_reviewed_by_a_different_person(tmp_path: Path) -> None:
    database, _ = ask(tmp_path, ["Why?", "How?", "Who?"], "write")
    client = client_of(Site(database, "write", "# Write", 1))
    ada, also_ada, bob = Person(client, "Ada"), Person(client, "ADA"), Person(client, "Bob")
    assert client.get("/api/about").json() == {"mode": "write", "instructions": "# Write"}
    assert ada.next()["task"]["kind"] == "write"
    ada.decide("write", "write", text="Because.")
    assert also_ada.next()["task"]["kind"] == "write" and also_ada.situation["annotator"] == "Ada"
    task = bob.next()["task"]
    assert (task["kind"], task["text"]) == ("review", "Because.")
    assert "Ada" not in json.dumps(bob.situation)
    given = {"id": fresh(), "item": task["item"], "seconds": 1, "about": task["about"]}
    own = ada.post("review", **given, decision="accept")
    assert own.status_code == 409 and "their own" in own.json()["error"]
    # What is rejected goes back to its author; its reviewer is asked something else.
    bob.decide("review", "reject", about=task["about"], reason="Says nothing.")
    assert bob.situation["task"]["messages"][0]["content"] == "Who?"
    ada.decide("write", "skip")
    assert ada.situation["task"]["returned"] == {"text": "Because.", "reason": "Says nothing."}
    ada.decide("write", "write", text="It follows from the second law.")
    bob.decide("write", "skip")
    task = bob.situation["task"]
    done = bob.decide("review", "edit", about=task["about"], text="By the second law.")
    assert done["progress"]["done"] == 1 and done["task"]["kind"] == "write"
