"""Families that can't be sampled in batches, or with a cache, are found out, and sampled otherwise."""

from __future__ import annotations

from collections.abc import Callable, Collection
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from model.families import build
from raymill.engine import samples
from raymill.engine.group import WorkerGroup
from raymill.engine.samples import settle_sampling
from raymill.errors import ConfigError
from raymill.generate.batch import Completion, complete
from raymill.generate.modes import MODES, SamplingMode, mode_of, use_mode
from raymill.generate.sampling import dropped_tokens, sample
from raymill.model.shape import context_length
from raymill.rl.reward.model import NO_SAMPLING, RewardModelEngine
from raymill.rl.rollout_batch import RolloutBatch, token_log_probs
from rl.rollout.tiny import tiny_model

CPU = torch.device("cpu")
PROMPTS = [list(range(5, 16)), [20, 21, 22], list(range(30, 36))]
SEEDS = [1, 2, 3]
STOPS = range(0, 128, 9)


class Twisted(torch.nn.Module):
    """A model whose family misreads what it is given: `twist` changes the arguments of a pass."""

    def __init__(self, twist: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        super().__init__()
        self.inner = tiny_model()
        self.config = self.inner.config
        self._twist = twist

    def get_output_embeddings(self) -> Any:
        return self.inner.get_output_embeddings()

    def forward(
        self, input_ids: Any = None, attention_mask: Any = None, position_ids: Any = None,
        cache: Any = None, use_cache: bool = False,
    ) -> Any:  # fmt: skip
        given = {
            "input_ids": input_ids, "attention_mask": attention_mask,
            "position_ids": position_ids, "cache": cache, "use_cache": use_cache,
        }  # fmt: skip
        return self.inner(**self._twist(given))


def sees_padding(given: dict[str, Any]) -> dict[str, Any]:
    return given | {"attention_mask": None}


def forgets_positions(given: dict[str, Any]) -> dict[str, Any]:
    """Every pass begins at position 0, as Bamba's does without positions."""
    width = given["input_ids"].shape[1]
    return given | {"position_ids": torch.arange(width)[None]}


def refuses_a_cache(given: dict[str, Any]) -> dict[str, Any]:
    if given["cache"] is not None:
        raise NotImplementedError("no cache here")
    return given


def looks_ahead(given: dict[str, Any]) -> dict[str, Any]:
    """The first token that is seen depends on how many there are."""
    return given | {"input_ids": given["input_ids"] + given["input_ids"].shape[1]}


def answers(
    model: Any, prompts: list[list[int]], seeds: list[int], stops: Collection[int] = STOPS
) -> list[Completion]:
    return complete(
        model, prompts, max_new_tokens=8, temperature=1.0, top_p=1.0, seeds=seeds, stop_ids=stops,
        batch_size=3, log_probs=True,
    )  # fmt: skip


def gap(model: Any, found: list[Completion]) -> float:
    """Return the difference of log-probabilities from training's, in nats."""
    rollouts = RolloutBatch.from_columns(
        PROMPTS, [one.ids for one in found], [one.log_probs for one in found]
    )
    with torch.no_grad():
        theirs_BT, _ = token_log_probs(model, model.get_output_embeddings(), rollouts, 1.0, CPU)
    return float(((theirs_BT - rollouts.sampler).abs() * rollouts.mask).max())


@pytest.mark.parametrize(
    ("twist", "mode", "why"),
    [
        (dict, (True, True), ""),
        (sees_padding, (False, True), "in batches with a cache, its logits differ from those"),
        (forgets_positions, (False, False), "in batches with a cache, its logits differ"),
        (
            refuses_a_cache,
            (False, False),
            "in batches with a cache, it fails (NotImplementedError: no",
        ),
    ],
)
def test_what_a_family_does_wrong_is_avoided_and_told(
    twist: Any, mode: tuple[bool, bool], why: str
) -> None:
    model = Twisted(twist)
    found = mode_of(model)
    assert (found.batched, found.cached) == mode
    assert why in found.why
    note = found.note(model)
    assert (note is None) == (mode == (True, True))
    assert note is None or note.startswith("Twisted is sampled ")
    drawn = answers(model, PROMPTS, SEEDS)
    alone = [
        answers(model, [prompt], [seed])[0] for prompt, seed in zip(PROMPTS, SEEDS, strict=True)
    ]
    assert [one.ids for one in drawn] == [one.ids for one in alone]
    if twist is not forgets_positions:  # which makes no difference where training begins at 0
        assert [one.ids for one in drawn] == [
            one.ids for one in answers(Twisted(dict), PROMPTS, SEEDS)
        ]
    assert gap(model, drawn) < 1e-4


def test_what_is_not_what_training_computes_is_refused() -> None:
    model = Twisted(looks_ahead)
    with pytest.raises(
        ConfigError, match=r"Twisted can't be sampled: row by row without a cache, its"
    ):
        answers(model, PROMPTS, SEEDS)
    with pytest.raises(ConfigError, match="Twisted can't be sampled"):
        next(sample(
            model, [5, 6], max_new_tokens=2, temperature=0.0, top_p=1.0,
            seed=0, end_of_text_id=None,
        ))  # fmt: skip


def test_a_model_is_tried_once_and_left_as_it_was() -> None:
    model = Twisted(dict).train()
    passes: list[int] = []
    model.register_forward_pre_hook(lambda *_: passes.append(1))
    torch.manual_seed(3)
    before = torch.get_rng_state()
    mode_of(model)
    assert 0 < len(passes) < 25
    passes.clear()
    mode_of(model)
    assert passes == []
    assert model.training
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("family", ["lfm2", "bamba", pytest.param("mamba", marks=pytest.mark.slow)])
def test_recurrent_families_answer_as_if_alone(family: str) -> None:
    """Rows end before others, and are padded: padding must not reach a state."""
    model = build(family).eval()
    stops = answers(model, PROMPTS, SEEDS, ())[0].ids[:1]
    drawn = answers(model, PROMPTS, SEEDS, stops)
    assert len({len(one.ids) for one in drawn}) > 1, "some end before others"
    for prompt, seed, together in zip(PROMPTS, SEEDS, drawn, strict=True):
        [alone] = answers(model, [prompt], [seed], stops)
        assert together.ids == alone.ids
        streamed = sample(
            model, prompt, max_new_tokens=8, temperature=1.0, top_p=1.0,
            seed=seed, end_of_text_id=None,
        )  # fmt: skip
        assert tuple(streamed)[: len(alone.ids)] == alone.ids
    assert gap(model, drawn) < 1e-4


class RanksInModes:
    """A group whose rank 0 is this process; each rank has found the mode in its place to work."""

    def __init__(self, found: list[SamplingMode]) -> None:
        self.rank, self.world_size = 0, len(found)
        self._found = found

    def sum(self, *values: float) -> list[float]:
        """Count the ranks by mode; or their failures, of which there are none."""
        if len(values) == 1:
            return [float(values[0])]
        return [float(self._found.count(mode)) for mode in MODES]

    def first(self, applies: bool) -> int:
        """Return the first rank in the slowest mode."""
        slowest = max(self._found, key=MODES.index)
        assert applies == (self._found[0] == slowest)
        return self._found.index(slowest)

    def broadcast(self, value: SamplingMode, source: int) -> SamplingMode:
        return self._found[source]


def test_a_model_that_one_rank_cannot_sample_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(model: Any) -> SamplingMode:
        raise ConfigError(["model: no"])

    monkeypatch.setattr(samples, "mode_of", refuse)
    with pytest.raises(ConfigError, match="model: no"):
        settle_sampling(torch.nn.Linear(1, 1), WorkerGroup(CPU), None, 0)


@pytest.mark.parametrize(
    ("found", "expected"),
    [([0, 0], 0), ([0, 1], 1), ([2, 1], 2), ([2, 0], 2)],
)
def test_ranks_sample_in_the_slowest_mode(
    found: list[int], expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = torch.nn.Linear(1, 1)
    use_mode(model, MODES[found[0]])
    group: Any = RanksInModes([MODES[place] for place in found])
    told: list[Any] = []
    event_log: Any = SimpleNamespace(write=lambda *event, **values: told.append(values))
    settle_sampling(model, group, event_log, 0)
    assert mode_of(model) == MODES[expected]


def test_a_slow_family_is_told_in_the_journal() -> None:
    told: list[Any] = []
    event_log: Any = SimpleNamespace(write=lambda *event, **values: told.append((event, values)))
    settle_sampling(Twisted(sees_padding), WorkerGroup(CPU), event_log, 0)
    [(event, values)] = told
    assert event == ("message", 0)
    assert values["text"].startswith(
        "Twisted is sampled row by row, which takes longer: in batches"
    )
    settle_sampling(Twisted(dict), WorkerGroup(CPU), event_log, 0)
    assert len(told) == 1
    assert samples.MODES[0] == SamplingMode()


def test_a_judge_that_sees_padding_scores_one_by_one() -> None:
    class Judge(torch.nn.Module):
        """Score a token by the row's mean, which padding changes."""

        def __init__(self) -> None:
            super().__init__()
            self.score = torch.nn.Linear(1, 1)
            text = SimpleNamespace(pad_token_id=0)
            self.config = SimpleNamespace(get_text_config=lambda: text)

        def forward(self, input_ids: torch.Tensor, use_cache: bool) -> Any:
            mean_S1 = input_ids.float().mean(dim=1, keepdim=True)
            return self.score(mean_S1.expand(input_ids.shape)[..., None])

    engine = RewardModelEngine(Judge(), 1)
    rows = [[30, 40, 50, 60], [70]]
    together = engine.generate(rows, NO_SAMPLING, [0, 0])
    assert together == [engine.generate([row], NO_SAMPLING, [0])[0] for row in rows]


@pytest.mark.parametrize(
    ("family", "settings", "expected"),
    [
        ("llama", {"max_position_embeddings": 300}, 300),
        ("gpt2", {"n_positions": 300}, 300),
        ("mpt", {"max_seq_len": 300}, 300),
        ("bloom", {}, None),
        ("bloom", {"seq_length": 300}, 300),
        ("mamba", {}, None),
        ("rwkv", {"context_length": 300}, 300),
        ("gemma3", {"text_config": {"max_position_embeddings": 300}}, 300),
        ("xlnet", {}, None),
    ],
)
def test_the_context_length_is_found_by_any_of_its_names(
    family: str, settings: dict[str, Any], expected: int | None
) -> None:
    config = CONFIG_MAPPING[family](**settings)
    assert context_length(config) == expected
    assert context_length(config.to_dict()) == expected
    prompt = [5] * 310
    assert dropped_tokens(SimpleNamespace(config=config), prompt) == (11 if expected else 0)
