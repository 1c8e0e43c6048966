"""Votes on the chat page: stored with their origin, revocable, and preference data in the end."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from fastapi.testclient import TestClient
from starlette.applications import Starlette

from data.preference.preference_factory import job, prepared_here, stored, words, write_tokenizer
from raymill.annotate.app import Site, create_app
from raymill.annotate.database import DATABASE_NAME, Database
from raymill.annotate.export import export_preferences
from raymill.annotate.items import count_items
from raymill.data.messages.tokenizer import chat_tokenizer
from raymill.serve.feedback import Feedback, feedback_routes
from serve.feedback_factory import DIGESTS, VERSION, answer, vote


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with Database(tmp_path / DATABASE_NAME) as database:
        yield database


@pytest.fixture
def client(database: Database) -> TestClient:
    return TestClient(Starlette(routes=feedback_routes(Feedback(database, DIGESTS.get))))


def send(client: TestClient, body: dict[str, Any], path: str = "vote") -> dict[str, Any]:
    response = client.post(f"/feedback/{path}", json=body)
    assert response.status_code == 200, response.text
    return dict(response.json())


def refusal(client: TestClient, body: dict[str, Any], status: int, path: str = "vote") -> str:
    response = client.post(f"/feedback/{path}", json=body)
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert error["type"] == "invalid_request_error"
    return str(error["message"])


def test_votes_become_data_that_a_preparation_takes(
    client: TestClient, database: Database, tmp_path: Path
) -> None:
    good, bad = "A good one.", "Not so good."
    for number in range(20):
        # The better answer stands on either side.
        sides = [answer(good, seed=number), answer(bad, "models:/assistant/4", seed=number)]
        ranks = [1, 2] if number % 2 else [2, 1]
        shown = sides if number % 2 else sides[::-1]
        send(client, vote(f"Question {number}?", *shown, ranks=ranks))
    send(client, vote("A tie?", answer("One."), answer("Two."), ranks=[1, 1]))
    send(client, vote("Bad?", answer("One."), answer("Two."), decision="bad", ranks=None))
    send(client, vote("Edited?", answer("Almost."), ranks=[1], text="Quite."))

    path = export_preferences(database, tmp_path)
    rows = pq.read_table(path).to_pylist()
    assert len(rows) == 22
    for number, row in enumerate(rows[:20]):
        assert row["prompt"] == [{"role": "user", "content": f"Question {number}?"}]
        ranks = dict(zip(row["answers"], row["ranks"], strict=True))
        assert ranks == {good: 1, bad: 2}
        models = dict(zip(row["answers"], row["models"], strict=True))
        assert models == {good: VERSION, bad: "models:/assistant/4"}
        assert row["annotator"] == "Ada" and row["judge"] == "human"
    assert (rows[20]["ranks"], rows[21]["answers"], rows[21]["ranks"], rows[21]["models"]) == (
        [1, 1], ["Almost.", "Quite."], [2, 1], [VERSION, "human"],
    )  # fmt: skip

    lineage = json.loads(path.with_suffix(".json").read_text())
    assert lineage["counts"] == {"rank/bad": 1, "rank/ranked": 21, "rank/tie": 1, "undone": 0}
    assert {one["model"]: one["digest"] for one in lineage["models"]} == DIGESTS
    # Half of the better answers stood first; an edit shows no liking for a position.
    assert lineage["first_shown_preferred"] == {"preferred": 10, "of": 20}
    [shown_once] = {row["shown"] for row in database.rows(
        "SELECT shown FROM judgements WHERE judgement_id = (SELECT min(judgement_id) FROM judgements)"
    )}  # fmt: skip
    assert [(one["place"], one["seed"]) for one in json.loads(shown_once)] == [(0, 0), (1, 0)]

    tokenizer = chat_tokenizer(write_tokenizer(tmp_path / "parent"), "auto", ())
    prepared, results = prepared_here(job(tmp_path / "prepared", path), tokenizer)
    pairs = stored(prepared)
    assert len(pairs) == 21 and not any(result.bad for result in results)
    chosen = {words(prepared, pair.learned[0]).split("<")[0].strip() for pair in pairs}
    assert chosen == {good, "Quite."}


def test_a_vote_counts_once_and_can_be_taken_back(client: TestClient, database: Database) -> None:
    first = vote("Why?", answer("Because."), answer("So."))
    assert send(client, first) == {"recorded": True}
    assert send(client, first) == {"recorded": False}
    again = {**first, "id": "another-vote", "ranks": [2, 1]}
    assert refusal(client, again, 409) == "You have ranked this already."
    # Somebody else may see it otherwise.
    assert send(client, {**again, "id": "bobs-vote", "annotator": "Bob"}) == {"recorded": True}

    back = {"id": first["id"], "annotator": "Ada"}
    assert "nothing to take back" in refusal(client, {**back, "annotator": "Bob"}, 409, "withdraw")
    assert "nothing to take back" in refusal(
        client, {**back, "id": "no-such-vote"}, 409, "withdraw"
    )
    assert send(client, back, "withdraw") == send(client, back, "withdraw") == {"withdrawn": True}
    assert send(client, again) == {"recorded": True}
    rows = database.rows("SELECT annotator, ranks, undone IS NOT NULL FROM judgements")
    found = [tuple(row) for row in rows]
    assert found == [("Ada", "[1,2]", 1), ("Bob", "[2,1]", 0), ("Ada", "[2,1]", 0)]
    assert len(database.rows("SELECT * FROM items")) == 1


@pytest.mark.parametrize(
    ("given", "status", "why"),
    [
        ({"answers": [answer("One.", "models:/other/1"), answer("Two.")]}, 409, "models:/other/1"),
        ({"answers": [answer("Same."), answer(" Same.\n")]}, 409, "equal, so none of them is better"),
        ({"answers": [answer(""), answer("Two.")]}, 409, "the assistant's content is empty"),
        ({"answers": [answer("One.")], "ranks": [1]}, 409, "needs a better one"),
        ({"answers": []}, 400, "answers"),
        ({"ranks": [1, 2, 3]}, 409, "Expected 2 ranks"),
        ({"ranks": None}, 409, "Expected 2 ranks"),
        ({"decision": "bad"}, 409, "none for any other decision"),
        ({"decision": "maybe"}, 400, "decision"),
        ({"messages": [{"role": "assistant", "content": "Hello."}]}, 409, "at the beginning"),
        ({"messages": [{"role": "tool", "content": "1"}]}, 400, "messages.0.role"),
        ({"annotator": "<b>"}, 409, "A name consists of"),
        ({"text": "One."}, 409, "equals one of the answers"),
        ({"seconds": -1.0}, 400, "seconds"),
        ({"stars": 5}, 400, "stars"),
        ({"answers": [answer("One.", seed=-1), answer("Two.")]}, 400, "answers.0.seed"),
        ({"answers": [answer("One.", settings={"stop": {}}), answer("Two.")]}, 400, "settings.stop"),
    ],
)  # fmt: skip
def test_what_is_no_vote_is_refused_in_a_sentence(
    client: TestClient, database: Database, given: dict[str, Any], status: int, why: str
) -> None:
    body = {**vote("Why?", answer("One."), answer("Two.")), **given}
    assert why in refusal(client, body, status)
    assert database.rows("SELECT * FROM judgements") == []


def test_only_json_is_read(client: TestClient) -> None:
    form = client.post("/feedback/vote", content=b"{}", headers={"content-type": "text/plain"})
    assert form.status_code == 415
    json_type = {"content-type": "application/json"}
    assert client.post("/feedback/vote", content=b"{", headers=json_type).status_code == 400
    assert client.get("/feedback/vote").status_code == 405


def test_the_ranking_page_shows_what_was_voted_on(client: TestClient, database: Database) -> None:
    """A vote's question is one of the ranking's, so that others can be asked about it as well."""
    send(client, vote("Why?", answer("Because."), answer("So.")))
    assert count_items(database).ready == 1
    page = TestClient(
        create_app(Site(database, "rank", "Guide", target=2), "t"),
        headers={"authorization": "Bearer t"},
    )
    ada = page.post("/api/next", json={"annotator": "Ada"}).json()
    bob = page.post("/api/next", json={"annotator": "Bob"}).json()
    assert ada["state"] == "done"
    assert {one["text"] for one in bob["task"]["answers"]} == {"Because.", "So."}
