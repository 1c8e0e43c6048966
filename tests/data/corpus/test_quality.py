"""The classifier of quality: training, its file, and the step's decisions, against scikit-learn itself."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path

import numpy as np
import pytest
from sklearn.feature_extraction.text import HashingVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, roc_auc_score

from raymill.config import load as load_job
from raymill.data.corpus import quality_job
from raymill.data.corpus.cleaning.quality import Quality
from raymill.data.corpus.draft import Draft
from raymill.data.corpus.quality_model import Features, QualityModel, load
from raymill.data.corpus.quality_training import train
from raymill.errors import ConfigError, DataError

FEATURES = Features(ngram=2, buckets=1 << 12, characters=2000)
GOOD = "the theorem follows from a lemma which we prove below by induction over degrees"
RAW = "click here buy now cheap offer login cart free the a of sale share tweet follow"


def texts(topic: str, count: int, seed: int) -> list[str]:
    draw = random.Random(seed)
    words = f"{topic} {topic} {GOOD} {RAW}".split()
    # A third of the words are those of the other kind, so that the classes overlap.
    return [" ".join(draw.choices(words, k=8)) for _ in range(count)]


@pytest.fixture(scope="module")
def model() -> QualityModel:
    return train(texts(GOOD, 300, 1), texts(RAW, 400, 2), FEATURES, held_out=0.25, seed=7)


def test_held_out_figures_are_those_of_scikit_learn(model: QualityModel) -> None:
    """The draw of held-out documents is repeated here; the rest is a pipeline of scikit-learn's own."""
    draw = np.random.default_rng(7)
    split = {}
    for kind, documents in (("good", texts(GOOD, 300, 1)), ("raw", texts(RAW, 400, 2))):
        unique = [*dict.fromkeys(documents)]
        order = draw.permutation(len(unique))
        held_out = round(0.25 * len(unique))
        split[kind] = [unique[i] for i in order[held_out:]], [unique[i] for i in order[:held_out]]
    vectorizer = HashingVectorizer(
        token_pattern=r"\w+", ngram_range=(1, 2), n_features=1 << 12, alternate_sign=False
    )
    (good, tested_good), (raw, tested_raw) = split["good"], split["raw"]
    reference = LogisticRegression(
        C=10, solver="liblinear", class_weight="balanced", random_state=7
    )
    reference.fit(vectorizer.transform([*good, *raw]), [1] * len(good) + [0] * len(raw))
    tested = vectorizer.transform([*tested_good, *tested_raw])
    truth = [1] * len(tested_good) + [0] * len(tested_raw)
    expected = reference.predict_proba(tested)[:, 1]
    assert model.classifier.scores([*tested_good, *tested_raw]) == pytest.approx(expected, abs=1e-4)
    assert model.training.auc == pytest.approx(roc_auc_score(truth, expected), abs=1e-3)
    accuracy = accuracy_score(truth, reference.predict(tested))
    assert model.training.accuracy == pytest.approx(accuracy, abs=0.01)
    assert 0.8 < model.training.auc < 1
    counts = (model.training.good, model.training.raw)
    assert counts == (len(good), len(raw))


def test_training_twice_gives_the_same_file(tmp_path: Path, model: QualityModel) -> None:
    again = train(texts(GOOD, 300, 1), texts(RAW, 400, 2), FEATURES, held_out=0.25, seed=7)
    for name, trained in (("a", model), ("b", again)):
        trained.save(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_file_holds_the_whole_model(tmp_path: Path, model: QualityModel) -> None:
    path = tmp_path / "m.safetensors"
    model.save(path)
    loaded = load(str(path))
    assert loaded.training == model.training
    some = texts(f"{GOOD} {RAW}", 20, 3)
    assert np.array_equal(loaded.classifier.scores(some), model.classifier.scores(some))
    assert np.array_equal(loaded.percentiles, model.percentiles)


def test_quantiles_are_those_of_raw_text(model: QualityModel) -> None:
    """A third of fresh raw text is below the lowest third; nearly all good text is above."""
    fresh = model.classifier.scores(texts(RAW, 2000, 5))
    below = np.mean([model.quantile(float(score)) < 1 / 3 for score in fresh])
    assert below == pytest.approx(1 / 3, abs=0.08)
    good = model.classifier.scores(texts(GOOD, 200, 6))
    assert np.mean([model.quantile(float(score)) < 1 / 3 for score in good]) < 0.05


def test_the_step_keeps_parts(tmp_path: Path, model: QualityModel) -> None:
    path = str(tmp_path / "m.safetensors")
    model.save(Path(path))
    step = Quality(path, head=0.1, tail=0.5, keep=("head",))
    draft = Draft(GOOD, "web")
    assert step.apply(draft) is None
    assert draft.signals["quality.quantile"] >= 0.9
    assert step.apply(Draft(RAW, "web")) == "tail"
    assert Quality(path, head=0.1, tail=0.5, keep=("tail",)).apply(Draft(GOOD, "web")) == "head"
    assert Quality(path, head=0.0, tail=0.0, keep=("middle",)).apply(Draft(RAW, "web")) is None
    assert step.fingerprint() != ""


@pytest.mark.parametrize("content", [b"", b"\x02\0\0\0\0\0\0\0{}", b"no model at all, just a text"])
def test_another_file_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "other").write_bytes(content)
    with pytest.raises(DataError, match="other isn't a model"):
        load(str(tmp_path / "other"))
    with pytest.raises(DataError, match="absent: there is no such model"):
        load(str(tmp_path / "absent"))


def test_the_job_trains_from_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for kind, topic in (("good", GOOD), ("raw", RAW)):
        (tmp_path / kind).mkdir()
        records = [json.dumps({"body": text}) for text in texts(topic, 300, 1)]
        (tmp_path / kind / "a.jsonl").write_text("\n".join([*records, '{"other": 1}']))
    overrides = ["kind=quality", f"good={tmp_path}/good", f"raw={tmp_path}/raw", "text_column=body"]
    overrides += [f"storage.root={tmp_path}/storage", "buckets=4096", "documents=200", "name=math"]
    job = load_job("prepare", overrides)
    assert "1 files of good text and 1 of raw text" in quality_job.describe(job)
    path = quality_job.run(job)
    assert path.parent == tmp_path / "storage" / "quality"
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert path.name == f"math-{digest[:12]}.safetensors"
    training = load(str(path)).training
    assert training.good + training.held_out_good == 200
    assert f"AUC {training.auc:.4f}" in capsys.readouterr().out
    assert quality_job.run(job) == path


def test_a_job_without_usable_documents_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"other": 1}\n' * 9)
    overrides = ["kind=quality", f"good={tmp_path}", f"raw={tmp_path}"]
    with pytest.raises(
        DataError, match=r"good: 9 of 9 records can't be used, such as .*:1: no colu"
    ):
        quality_job.run(load_job("prepare", overrides))
    with pytest.raises(ConfigError, match="raw: name documents, as in raw=texts/"):
        load_job("prepare", overrides[:2])


def test_too_few_documents_are_refused() -> None:
    raw = texts(RAW, 100, 2)
    with pytest.raises(DataError, match=r"quality.good has 19 documents that count"):
        train([*texts(GOOD, 19, 1), *raw], raw[:50] + raw[50:], FEATURES, held_out=0.2, seed=1)
