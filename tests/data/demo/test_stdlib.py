"""The embedded conversations: the same every time, honest, and split without leaks."""

from __future__ import annotations

import builtins
import hashlib
import importlib
import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence

import pytest

from raymill.data.demo import stdlib_conversations as stdlib
from raymill.data.demo import stdlib_corpus
from raymill.data.demo.stdlib_conversations import ConversationEntry, conversations, group_of
from raymill.data.demo.stdlib_facts import facts
from raymill.data.demo.stdlib_phrases import REFUSAL
from raymill.data.demo.stdlib_sentence import sentence_about
from raymill.data.demo.stdlib_unknown import made_up_names, names_of
from raymill.data.demo.stdlib_wording import called_with, first_sentence
from raymill.evaluate.spelling import spelling_refusal_f1

FRACTION, SEED = 0.04, 1234


@pytest.fixture(scope="module")
def entries() -> list[ConversationEntry]:
    return conversations(FRACTION, SEED)


def texts(entry: ConversationEntry, role: str) -> list[str]:
    return [m["content"] for m in entry.record["messages"] if m["role"] == role]


def test_it_is_large_enough_and_mostly_answerable(entries: Sequence[ConversationEntry]) -> None:
    assert 3_000 < len(facts()) < 7_000
    assert 8_000 < len(entries) < 15_500
    kinds = Counter(entry.kind for entry in entries)
    assert kinds.keys() == {
        "what", "arguments", "signature", "has", "which", "module", "unknown", "turns",
    }  # fmt: skip
    assert 0.20 < kinds["unknown"] / (len(entries) - kinds["turns"]) < 0.25
    assert 0.03 < sum(entry.held_out for entry in entries) / len(entries) < 0.15


def test_another_process_with_another_hash_seed_builds_the_same(
    entries: Sequence[ConversationEntry],
) -> None:
    script = (
        "import sys; sys.path[:0] = sys.argv[1:]\n"
        "import hashlib, json, unittest.mock, xml.dom.minidom\n"
        "from raymill.data.demo.stdlib_conversations import conversations\n"
        f"rows = [vars(entry) for entry in conversations({FRACTION}, {SEED})]\n"
        "print(hashlib.sha256(json.dumps(rows).encode()).hexdigest())\n"
        "print({'antigravity', 'this', 'turtle', 'idlelib', 'tkinter'} & set(sys.modules))"
    )
    rows = json.dumps([vars(entry) for entry in entries])
    run = subprocess.run(
        [sys.executable, "-c", script, *sys.path],
        capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": "17"},
    )  # fmt: skip
    assert run.stdout.split("\n")[:2] == [hashlib.sha256(rows.encode()).hexdigest(), "set()"]


def test_users_and_assistants_take_turns(entries: Sequence[ConversationEntry]) -> None:
    for entry in entries:
        roles = [message["role"] for message in entry.record["messages"]]
        spoken = roles[roles[0] == "system" :]
        assert spoken == ["user", "assistant"] * (len(spoken) // 2)
        assert len(spoken) in ((4, 6) if entry.kind == "turns" else (2,))
        for message in entry.record["messages"]:
            content = message["content"]
            assert content == " ".join(content.split()) and "``" not in content
            assert len(content.split()) <= 45


def test_no_name_or_description_is_on_both_sides(entries: Sequence[ConversationEntry]) -> None:
    held_out = [entry for entry in entries if entry.held_out]
    training = [entry for entry in entries if not entry.held_out]
    assert not {e.name for e in held_out} & {e.name for e in training}
    assert not {e.group for e in held_out} & {e.group for e in training}
    assert not {texts(e, "user")[0] for e in held_out} & {texts(e, "user")[0] for e in training}
    names = {entry.name for entry in held_out if "." in entry.name}
    answers = {group_of(answer) for e in held_out for answer in texts(e, "assistant")}
    for entry in training:
        said = texts(entry, "assistant")
        assert not {group_of(answer) for answer in said} & answers, entry
        # A held-out class or module may be named as the place of a member, and there only.
        if entry.kind in ("what", "arguments", "signature", "unknown"):
            assert not set(re.findall(r"\w+(?:\.\w+)+", " ".join(said))) & names, entry


def test_a_description_is_on_one_side() -> None:
    held_out, training = stdlib.split(FRACTION, SEED)
    assert held_out and training
    assert not {group_of(f.text) for f in held_out} & {group_of(f.text) for f in training}
    assert len(facts()) - len(held_out) - len(training) < 30


def test_what_pretraining_holds_out_is_held_out(entries: Sequence[ConversationEntry]) -> None:
    families = stdlib_corpus.held_out_families(stdlib_corpus.entries(), FRACTION, SEED)
    inside = {fact.name for fact in facts() if fact.family in families}
    assert len(inside) > 50
    assert all(entry.held_out for entry in entries if entry.name in inside)
    # So is about that fraction of the rest.
    rest = {e.name: e.held_out for e in entries if e.kind == "what" and e.name not in inside}
    assert FRACTION / 2 < sum(rest.values()) / len(rest) < 2 * FRACTION
    assert {e.name for e in conversations(FRACTION, 5) if e.held_out} != {
        e.name for e in entries if e.held_out
    }
    assert not any(entry.held_out for entry in conversations(0.0, SEED))


def exists(name: str) -> bool:
    """Asked of the running Python itself."""
    parts = name.split(".")
    found: object = builtins
    for count in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:count]))
        except ImportError:
            continue
        parts = parts[count:]
        break
    for part in parts:
        if not hasattr(found, part):
            return False
        found = getattr(found, part)
    return True


def test_made_up_names_do_not_exist_and_real_ones_do(entries: Sequence[ConversationEntry]) -> None:
    for entry in entries:
        if entry.name.startswith(("tkinter", "turtle")):
            continue  # needs a library that not every build has
        if entry.kind == "unknown":
            assert not exists(entry.name), entry.name
            assert texts(entry, "assistant") == [f"{REFUSAL} `{entry.name}`."]
        elif entry.kind == "signature" and entry.held_out:
            assert exists(entry.name), entry.name


def test_parts_of_made_up_names_are_as_frequent_in_real_ones() -> None:
    for side in stdlib.split(FRACTION, SEED):
        made_up = made_up_names(side, stdlib.MADE_UP, SEED)
        assert len({name.name for name in made_up}) == len(made_up) > 0.3 * len(side)
        real = [fact for fact in side if fact.owner]
        owners, leaves = Counter(f.owner for f in real), Counter(f.leaf for f in real)
        assert all(owners[m.name.rpartition(".")[0]] and leaves[m.leaf.leaf] for m in made_up)
        mean_real = sum(len(fact.name) for fact in real) / len(real)
        mean_made_up = sum(len(name.name) for name in made_up) / len(made_up)
        assert abs(mean_real - mean_made_up) < 2
    top = [owner for owner, _ in owners.most_common(8)]
    share_real = sum(owners[owner] for owner in top) / len(real)
    share = sum(m.owner.owner in top for m in made_up) / len(made_up)
    assert abs(share_real - share) < 0.06


def test_spelling_does_not_give_made_up_names_away(entries: Sequence[ConversationEntry]) -> None:
    asked: dict[bool, list[tuple[str, bool]]] = {True: [], False: []}
    for entry in entries:
        if entry.kind != "turns":
            asked[entry.held_out].append((texts(entry, "user")[0], entry.kind == "unknown"))
    measured = spelling_refusal_f1(asked[False], asked[True])
    print(f"spelling alone: F1 {measured}")
    assert measured is not None and measured < 0.6


def test_names_of_knows_what_parsing_finds() -> None:
    for owner, known in {
        "json": "dumps JSONDecoder decoder",
        "os": "stat fork path environ",
        "os.path": "join exists genericpath",
        "socket.socket": "bind close makefile __init__",
        "collections.OrderedDict": "popitem get fromkeys mro",
        "enum.IntFlag": "name bit_length",
    }.items():
        names = names_of(owner)
        assert names is not None and names >= set(known.split()), owner
    assert "sqrt" not in (names_of("json") or ())
    assert names_of("no.such.thing") is None


@pytest.mark.parametrize(
    ("docstring", "sentence"),
    [
        ("Return the sine of x.\n\nMore.", "Return the sine of x."),
        ("S.join(it) -> str\n\nJoin :class:`~a.B`, e.g. ``x``.  Ends.", "Join a.B, e.g. x."),
        ("f(x) -- write *x* to the file", "Write x to the file."),
        ("d.items() -> a set-like view of d", "Return a set-like view of d."),
        ("Internal use only, keep away.", None),
        ("Short.", None),
        ("Takes the following:", None),
    ],
)
def test_first_sentences(docstring: str, sentence: str | None) -> None:
    assert first_sentence(docstring) == sentence


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("Return the sine of x.", "`f` returns the sine of x."),
        (
            "Create and return a copy, then return it.",
            "`f` creates and returns a copy, then returns it.",
        ),
        ("Try it or raise KeyError.", "`f` tries it or raises KeyError."),
        ("Recursively delete a tree.", "`f` recursively deletes a tree."),
        ("Shutdown the server.", "`f` shuts down the server."),
        ("Sets the name.", "`f` sets the name."),
        ("Base class for warnings.", "`f` is a base class for warnings."),
        ("The name of the file.", "`f` is the name of the file."),
        ("The dialog classes.", "`f`: The dialog classes."),
        ("An error occurred.", "`f`: An error occurred."),
        ("True if x is y.", "`f` is true if x is y."),
        ("Process object of a child.", "`f`: Process object of a child."),
    ],
)
def test_sentences(text: str, sentence: str) -> None:
    assert sentence_about("f", text) == sentence


def test_arguments_in_a_first_line() -> None:
    assert called_with("S.find(sub[, start[, end]]) -> int\n\nFind.") == ("sub", "start", "end")
    assert called_with("f(a, *, b=1)") == ("a", "b")
    assert called_with("Return x.") is None


def test_facts_have_their_public_names() -> None:
    known = {fact.name: fact for fact in facts()}
    assert known["json.loads"].arguments is not None
    expected = (
        "asyncio.gather os.path.join heapq.heappush collections.abc.Mapping socket.socket.bind "
        "random.randint len str.split pathlib.Path.exists decimal.Decimal.sqrt unittest.TestCase"
    )
    assert known.keys() >= set(expected.split())
    assert known["heapq.heappush"].signature == "(heap, item)"
    assert known["dict.items"].arguments == ()
    assert known["pickle.dumps"].family == "pickle"
    assert known["len"].family == stdlib_corpus.TRAINING
    assert not any(part.startswith("_") for name in known for part in name.split("."))
