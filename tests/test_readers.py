"""Every reader tells bytes that differ, which are damage, from bytes that can't be read, which say nothing:
these are read again, and then the storage is blamed and not the file."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from checkpoint.test_commit import save
from data.prepared_factory import write_prepared
from engine.alignment_probe import VOCAB, write_parent
from faults.weather import Weather
from raymill import reading
from raymill.checkpoint.commit import _is_committed
from raymill.checkpoint.fence import advance_fence, check_fence, raise_fence, writing_folder
from raymill.checkpoint.fencing_tokens import FolderTokens
from raymill.checkpoint.fragments import FragmentReader
from raymill.checkpoint.manifest import INDEX_NAME, MANIFEST_NAME, verify
from raymill.checkpoint.resume import newest_verified
from raymill.checkpoint.retention import REGISTERED_NAME, committed_steps, registered_checkpoints
from raymill.config import load
from raymill.data.chat.questions import Question, read_questions, write_questions
from raymill.data.demo.stdlib_corpus import read as read_stdlib
from raymill.data.messages.folder import read_settings
from raymill.data.messages.tokenizer import _template, chat_tokenizer
from raymill.data.prompts.metadata import PromptRecord, read_metadata, write_metadata
from raymill.data.sources import planning, raw_streams
from raymill.data.sources.documents import DocumentParser
from raymill.data.sources.files import find_files
from raymill.data.sources.planning import plan_units
from raymill.data.sources.records import read_records
from raymill.data.store import shards
from raymill.data.store.manifest import (
    check_shard_size,
    load_prepared,
    read_manifest,
    read_tokenizer,
)
from raymill.data.store.shards import read_row_group
from raymill.data.text.inputs_check import range_sha256
from raymill.data.text.text_unit import Settings
from raymill.data.text.unit import UNITS_FOLDER, finished, run_unit
from raymill.driver.chat import _read_prompt
from raymill.durable import sha256_file
from raymill.engine.event_log import EventLog, attempts_in
from raymill.engine.guard import LEFT_OUT_NAME, leave_out, noted_windows
from raymill.engine.heartbeat import Heartbeat, read_heartbeats
from raymill.engine.reference import CachedReference
from raymill.errors import CheckpointError, ConfigError, DataError, RaymillError, StorageError
from raymill.evaluate.baselines import baselines
from raymill.generate.load import load_model
from raymill.model.build import load_pretrained
from raymill.model.parent import load_parent, load_scalar_model
from raymill.model.shape import read_config
from raymill.report.audit import _verified
from raymill.rl.reward.model import RewardModelSpec
from raymill.rl.rollout.pool import LocalPool
from raymill.rl.rollout.record import RolloutRecord, read_rollout, write_rollout
from raymill.rl.rollout.transformers_engine import ModelSpec
from raymill.storage.bucket import Bucket
from raymill.storage.mirror import Mirror
from raymill.track.follow import Follower
from raymill.track.forwarder import STATE_NAME, _read_state
from raymill.track.marker import MARKER_NAME, is_exported, read_marker, weights_digest, write_marker
from raymill.track.state_log import StateLog, read_history
from rl.rollout.faults import ToySpec
from rl.rollout.tiny import SAMPLING, batches

Build = Callable[[Path], "Case"]


@dataclass(frozen=True)
class Case:
    """`read` looks at `path` and gives something that can be compared. `damaged` is what it raises where the
    file's bytes differ, or returns where it looks for something else then."""

    path: Path
    read: Callable[[], Any]
    damaged: Any = None


CASES: dict[str, Build] = {}
WITH_BYTES: list[str] = []


def without_bytes(build: Build) -> Build:
    """A reader of folders and sizes, or one that nothing tells what the bytes should be."""
    CASES[build.__name__] = build
    return build


def case(build: Build) -> Build:
    WITH_BYTES.append(build.__name__)
    return without_bytes(build)


# Checkpoints.


@case
def a_checkpoints_manifest(place: Path) -> Case:
    directory = save(place, 1)
    return Case(directory / MANIFEST_NAME, lambda: verify(directory).step, CheckpointError)


@case
def a_checkpoints_file(place: Path) -> Case:
    directory = save(place, 1)
    return Case(
        directory / "rank-00000.safetensors", lambda: verify(directory).step, CheckpointError
    )


@case
def the_newest_checkpoint(place: Path) -> Case:
    save(place, 1)
    newest = save(place, 2)

    def read() -> Any:
        found = newest_verified(place, check=verify)
        return None if found is None else found.manifest.step

    return Case(newest / "rank-00000.safetensors", read, 1)


@case
def a_checkpoint_to_be_replaced(place: Path) -> Case:
    directory = save(place, 1)
    digest = verify(directory).digest
    return Case(directory / MANIFEST_NAME, lambda: _is_committed(directory, digest), False)


@case
def a_checkpoint_to_be_audited(place: Path) -> Case:
    directory = save(place, 1)

    def read() -> Any:
        manifests, problems = _verified(place)
        return len(manifests), len(problems)

    return Case(directory / MANIFEST_NAME, read, (0, 1))


@case
def a_checkpoints_index(place: Path) -> Case:
    directory = save(place, 1)
    return Case(
        directory / INDEX_NAME,
        lambda: sorted(FragmentReader.open(directory).index),
        CheckpointError,
    )


@case
def a_checkpoints_fragments(place: Path) -> Case:
    directory = save(place, 1)
    return Case(
        directory / "rank-00000.safetensors",
        lambda: FragmentReader.open(directory).read("fp32", "b").tolist(),
        CheckpointError,
    )


@without_bytes
def the_folder_of_checkpoints(place: Path) -> Case:
    save(place, 1)
    return Case(place, lambda: committed_steps(place))


@case
def what_is_registered(place: Path) -> Case:
    path = place / REGISTERED_NAME
    path.write_text(json.dumps([{"checkpoint": "checkpoints/step-00000001"}]))
    return Case(path, lambda: registered_checkpoints(place), DataError)


@without_bytes
def a_fence(place: Path) -> Case:
    raise_fence(place, 3)
    return Case(writing_folder(place, 3), lambda: check_fence(place, 3))


@without_bytes
def a_folder_of_fences(place: Path) -> Case:
    raise_fence(place, 3)
    return Case(place, lambda: advance_fence(place, 3, 1))


@case
def a_lease(place: Path) -> Case:
    from raymill.checkpoint.lease import this_process

    tokens, holder = FolderTokens(place / "lease"), this_process()
    assert tokens.claim(1, holder)
    return Case(place / "lease" / "00000001.json", tokens.newest, (1, None))


# Prepared data.


def rows_case(place: Path, warm: bool) -> Case:
    shards._footers.clear()
    prepared = write_prepared(place / "prepared")
    shard = prepared.manifest.splits["train"].shards[0]
    path = prepared.shard_path(shard)
    if warm:
        read_row_group(path, shard, 1, "uint16")
    return Case(path, lambda: read_row_group(path, shard, 0, "uint16").tokens.tolist(), DataError)


@case
def a_row_group(place: Path) -> Case:
    return rows_case(place, warm=False)


@case
def a_row_group_whose_footer_is_known(place: Path) -> Case:
    return rows_case(place, warm=True)


@without_bytes
def a_shards_size(place: Path) -> Case:
    prepared = write_prepared(place / "prepared")
    shard = prepared.manifest.splits["train"].shards[0]
    path = prepared.shard_path(shard)
    return Case(path, lambda: check_shard_size(path, shard))


@case
def a_table_of_shards(place: Path) -> Case:
    folder = write_prepared(place / "prepared").folder
    return Case(
        folder / "train.arrow", lambda: len(load_prepared(folder).manifest.splits), DataError
    )


@case
def a_manifest(place: Path) -> Case:
    folder = write_prepared(place / "prepared").folder
    return Case(folder / "manifest.json", lambda: read_manifest(folder).digest, DataError)


@case
def a_prepared_tokenizer(place: Path) -> Case:
    prepared = write_prepared(place / "prepared")
    path = prepared.tokenizer_folder / "tokenizer.json"
    return Case(path, lambda: load_prepared(prepared.folder).manifest.digest, DataError)


@case
def a_tokenizer(place: Path) -> Case:
    path = write_prepared(place / "prepared").tokenizer_folder / "tokenizer.json"
    return Case(path, lambda: read_tokenizer(path).get_vocab_size(), DataError)


@case
def known_baselines(place: Path) -> Case:
    prepared = write_prepared(place / "prepared")
    path = prepared.folder / f"baselines-{prepared.manifest.digest[:12]}.json"
    path.write_text(json.dumps({"byte_trigram": 1.0, "gzip": 2.0, "xz": 3.0}))
    return Case(path, lambda: baselines(prepared), DataError)


@case
def questions(place: Path) -> Case:
    path = place / "questions.jsonl"
    write_questions(path, [Question("train", 0.5, "why?", "because")])
    return Case(path, lambda: list(read_questions(path)), DataError)


@case
def a_book_of_prompts(place: Path) -> Case:
    path = place / "prompts.jsonl"
    write_metadata(path, [PromptRecord(1, "train", ({"role": "user"},), None, None, {})])
    return Case(path, lambda: read_metadata(path), DataError)


# Raw inputs.

READER = DocumentParser(text_column="text", group_column=None, fraction=0.5, seed=1)
TEXTS = [f"text number {number}" for number in range(200)]
LINES = b"".join(json.dumps({"text": text}).encode() + b"\n" for text in TEXTS)


def input_case(path: Path, damaged: Any = DataError) -> Case:
    [piece] = planning._cut(find_files([str(path.parent)], "data.path"), 1 << 26)
    return Case(path, lambda: list(read_records(piece, READER, hashlib.sha256())), damaged)


@without_bytes
def json_lines(place: Path) -> Case:
    (place / "a.jsonl").write_bytes(LINES)
    return input_case(place / "a.jsonl", damaged=None)  # bad lines are named one by one


@case
def compressed_lines(place: Path) -> Case:
    (place / "a.jsonl.gz").write_bytes(gzip.compress(LINES))
    return input_case(place / "a.jsonl.gz")


@case
def a_parquet_input(place: Path) -> Case:
    pq.write_table(pa.table({"text": TEXTS}), place / "a.parquet", write_page_checksum=True)
    return input_case(place / "a.parquet")


@case
def an_arrow_input(place: Path) -> Case:
    table = pa.table({"text": TEXTS})
    with pa.ipc.new_stream(str(place / "a.arrow"), table.schema) as stream:
        stream.write_table(table)
    return input_case(place / "a.arrow")


@case
def a_parquet_input_that_is_planned(place: Path) -> Case:
    pq.write_table(pa.table({"text": TEXTS}), place / "a.parquet")
    [file] = find_files([str(place)], "data.path")
    return Case(place / "a.parquet", lambda: list(planning._cut([file], 1 << 26)), DataError)


@without_bytes
def lines_that_are_planned(place: Path) -> Case:
    (place / "a.jsonl").write_bytes(LINES)
    [file] = find_files([str(place)], "data.path")
    return Case(place / "a.jsonl", lambda: list(planning._cut([file], 1000)))


@without_bytes
def a_bad_lines_number(place: Path) -> Case:
    (place / "a.jsonl").write_bytes(LINES)
    *_, piece = planning._cut(find_files([str(place)], "data.path"), 1000)
    return Case(place / "a.jsonl", lambda: raw_streams.first_line_number(piece))


@without_bytes
def an_inputs_digest(place: Path) -> Case:
    (place / "a.jsonl").write_bytes(LINES)
    [piece] = find_files([str(place)], "data.path")
    return Case(place / "a.jsonl", lambda: range_sha256(piece))


def folder_case(place: Path, pattern: str) -> Case:
    for path in (place / "one" / "a.txt", place / "two" / "b.txt"):
        path.parent.mkdir()
        path.write_text(path.name)
    return Case(
        place / "two",
        lambda: [file.name for file in find_files([f"{place}{pattern}"], "data.path")],
    )


@without_bytes
def a_subfolder(place: Path) -> Case:
    return folder_case(place, "")


@without_bytes
def a_matched_subfolder(place: Path) -> Case:
    return folder_case(place, "/*/*.txt")


@without_bytes
def a_deeply_matched_subfolder(place: Path) -> Case:
    return folder_case(place, "/**/*.txt")


@without_bytes
def the_standard_library(place: Path) -> Case:
    from raymill.data.demo.stdlib_corpus import _library

    return Case(_library() / "abc.py", lambda: len(read_stdlib("source/abc.py")))


def unit_case(place: Path, of: str) -> Case:
    prepared = write_prepared(place / "prepared")
    (place / "text").mkdir()
    (place / "text" / "a.jsonl").write_bytes(LINES)
    data = load("prepare", [f"data.path={place / 'text'}", "data.source=files"]).data
    [unit] = plan_units(_all_for_training(data, place), seed=1)[:1]
    settings = Settings(
        str(prepared.folder), READER, prepared.manifest.tokenizer, "<|endoftext|>", 16, 4
    )
    result = run_unit(7, unit, settings)
    path = prepared.folder / UNITS_FOLDER / "00007.json"
    if of == "shard":
        [shard] = result.shards.values()
        path = prepared.folder / shard.path
    damaged = "made again"
    return Case(path, lambda: finished(7, unit, settings) or damaged, damaged)


def _all_for_training(data: Any, place: Path) -> Any:
    from dataclasses import replace

    (place / "held").mkdir()
    (place / "held" / "b.jsonl").write_bytes(LINES)
    return replace(data, validation=replace(data.validation, path=(str(place / "held"),)))


@case
def a_finished_unit(place: Path) -> Case:
    return unit_case(place, "sidecar")


@case
def a_finished_units_shard(place: Path) -> Case:
    return unit_case(place, "shard")


# Models' folders.


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_parent(tmp_path_factory.mktemp("model") / "model", hidden=32)


_model = Path()


@pytest.fixture(autouse=True)
def _model_at_hand(model: Path) -> None:
    global _model
    _model = model


def model_folder(place: Path) -> Path:
    return Path(shutil.copytree(_model, place / "model"))


def total(model: Any) -> float:
    return float(sum(one.detach().double().sum() for one in model.parameters()))


@case
def a_models_shape(place: Path) -> Case:
    folder = model_folder(place)
    return Case(folder / "config.json", lambda: read_config(folder), ConfigError)


def parent_case(place: Path, name: str, damaged: type[RaymillError]) -> Case:
    folder = model_folder(place)
    return Case(folder / name, lambda: total(load_parent(folder, VOCAB, [], "sdpa", 1)), damaged)


@case
def a_parents_configuration(place: Path) -> Case:
    return parent_case(place, "config.json", ConfigError)


@case
def a_parents_weights(place: Path) -> Case:
    return parent_case(place, "model.safetensors", DataError)


@case
def a_model_to_continue(place: Path) -> Case:
    folder = model_folder(place)
    from raymill.model.shape import own_architecture

    arch = own_architecture(folder)
    return Case(
        folder / "model.safetensors",
        lambda: total(load_pretrained(folder, arch, VOCAB, 0)),
        DataError,
    )


@case
def a_sampling_models_configuration(place: Path) -> Case:
    folder = model_folder(place)
    spec = ModelSpec(str(folder), VOCAB, "sdpa", "fp32", 1)
    return Case(folder / "config.json", lambda: spec.build().model.config.hidden_size, ConfigError)


@case
def a_reward_model(place: Path) -> Case:
    folder = place / "judge"
    load_scalar_model(_model, VOCAB, [], "sdpa", 5, pad_id=0)[0].save_pretrained(folder)
    spec = RewardModelSpec(str(folder), "fp32", 1)
    return Case(folder / "model.safetensors", lambda: total(spec.build()._model), DataError)


@case
def a_model_to_talk_to(place: Path) -> Case:
    folder = model_folder(place)
    return Case(folder / "model.safetensors", lambda: total(load_model(folder)[0]), DataError)


@case
def a_tokenizers_settings(place: Path) -> Case:
    folder = model_folder(place)
    return Case(folder / "tokenizer_config.json", lambda: read_settings(folder), DataError)


@case
def a_parents_tokenizer(place: Path) -> Case:
    folder = model_folder(place)
    return Case(
        folder / "tokenizer.json",
        lambda: chat_tokenizer(folder, "chatml", ()).identity,
        DataError,
    )


@case
def a_template(place: Path) -> Case:
    path = place / "own.jinja"
    path.write_text("{{ messages }}")
    return Case(path, lambda: _template(place, {}, str(path)), ConfigError)


@case
def a_prompts_file(place: Path) -> Case:
    path = place / "prompt.txt"
    path.write_text("The red mill")
    job = load("chat", [f"prompt_file={path}"])
    return Case(path, lambda: _read_prompt(job), ConfigError)


@case
def an_exports_marker(place: Path) -> Case:
    folder = model_folder(place)
    write_marker(folder, {"checkpoint": "x"})
    return Case(folder / MARKER_NAME, lambda: read_marker(folder), DataError)


@case
def an_exports_file(place: Path) -> Case:
    folder = model_folder(place)
    write_marker(folder, {"checkpoint": "x"})
    return Case(folder / "tokenizer.json", lambda: is_exported(folder, {"checkpoint": "x"}), False)


@without_bytes
def weights(place: Path) -> Case:
    folder = model_folder(place)
    return Case(folder / "model.safetensors", lambda: weights_digest(folder))


# Records of a run.


@case
def rollouts(place: Path) -> Case:
    path = place / "step.parquet"
    with LocalPool(ToySpec(place)) as pool:
        import torch

        pool.sync([("a", torch.ones(3))], 17)
        found = RolloutRecord.from_results(
            2, SAMPLING, list(pool.generate(batches(2), SAMPLING).results)
        )
    write_rollout(path, found)
    return Case(path, lambda: read_rollout(path).sample_id.tolist(), DataError)


@case
def a_cached_reference(place: Path) -> Case:
    cache = CachedReference(place / "reference.npz")
    cache.record = np.arange(50, dtype=np.int64)
    cache.values = np.linspace(-9, -1, 100, dtype=np.float32).reshape(-1, 2)
    cache._save()

    def read() -> Any:
        again = CachedReference(cache.path)
        again.load()
        return again.values.tolist()

    return Case(cache.path, read, DataError)


@case
def samples_left_out(place: Path) -> Case:
    leave_out(place, 8, 15, "not finite")
    return Case(place / LEFT_OUT_NAME, lambda: noted_windows(place), DataError)


def journal_case(place: Path, read: Callable[[Path], Any]) -> Case:
    path = place / "metrics.jsonl"
    event_log = EventLog(path)
    event_log.write("attempt", 0)
    event_log.close()
    return Case(path, lambda: read(path))


@without_bytes
def a_journals_attempts(place: Path) -> Case:
    return journal_case(place, attempts_in)


@without_bytes
def a_journals_events(place: Path) -> Case:
    return journal_case(place, lambda path: Follower(path).read())


@without_bytes
def a_journals_end(place: Path) -> Case:
    return journal_case(place, lambda path: Follower.at_end(path).offset)


@without_bytes
def a_sign_of_life(place: Path) -> Case:
    Heartbeat(place, 0).beat("forward")
    return Case(place / "rank-00000.pulse", lambda: read_heartbeats(place)[0])


@without_bytes
def a_history(place: Path) -> Case:
    StateLog(place, 1).enter("running")
    return Case(place / "history.jsonl", lambda: read_history(place))


@case
def what_was_tracked(place: Path) -> Case:
    (place / STATE_NAME).write_text(json.dumps({"offset": 12}))
    return Case(place / STATE_NAME, lambda: _read_state(place / STATE_NAME), DataError)


@without_bytes
def a_folder_to_upload(place: Path) -> Case:
    (place / "logs").mkdir()
    (place / "logs" / "rank.log").write_text("x")
    mirror = Mirror(Bucket("memory://"), place)
    return Case(place / "logs", lambda: sorted(mirror._files()))


@without_bytes
def any_files_digest(place: Path) -> Case:
    (place / "file").write_text("x")
    return Case(place / "file", lambda: sha256_file(place / "file"))


# The tests.


@pytest.fixture
def weather(monkeypatch: pytest.MonkeyPatch) -> Weather:
    monkeypatch.setattr(reading, "PAUSE_S", 0.0)
    return Weather(monkeypatch)


def everything(place: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(place.rglob("*")) if path.is_file()}


@pytest.fixture
def asked(request: pytest.FixtureRequest, tmp_path: Path, weather: Weather) -> Case:
    return CASES[request.param](tmp_path)


@pytest.mark.parametrize("asked", sorted(CASES), indirect=True)
def test_what_does_not_answer_for_a_moment_is_read(asked: Case, weather: Weather) -> None:
    expected = asked.read()
    weather.away(asked.path, times=2)
    assert asked.read() == expected
    assert weather.met == 2


@pytest.mark.parametrize("asked", sorted(CASES), indirect=True)
def test_what_never_answers_is_blamed_on_the_storage(
    asked: Case, weather: Weather, tmp_path: Path
) -> None:
    before = everything(tmp_path)
    weather.away(asked.path, times=1000)
    with pytest.raises(StorageError, match="can't be read") as raised:
        asked.read()
    weather.clear()
    assert asked.path.name in str(raised.value)
    assert everything(tmp_path) == before, "nothing was set aside, deleted or made anew"


@pytest.mark.parametrize("asked", sorted(WITH_BYTES), indirect=True)
def test_bytes_that_differ_are_blamed_on_the_file(asked: Case, tmp_path: Path) -> None:
    assert asked.path.is_relative_to(tmp_path), "only a test's own files are damaged"
    stat = asked.path.stat()
    content = bytearray(asked.path.read_bytes())
    middle = len(content) // 2
    for place in (0, 1, 16 % len(content), middle, len(content) - 3):  # magic, contents and end
        content[place] ^= 0xFF
    asked.path.write_bytes(content)
    os.utime(asked.path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    if isinstance(asked.damaged, type) and issubclass(asked.damaged, Exception):
        with pytest.raises(asked.damaged) as raised:
            asked.read()
        assert not isinstance(raised.value, StorageError)
        assert asked.path.name in str(raised.value) or str(asked.path.parent) in str(raised.value)
    else:
        assert asked.read() == asked.damaged
