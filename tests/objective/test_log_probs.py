"""Log-probabilities and entropies against float64, TRL's, and the memory that they take."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raymill.objective import log_probs
from raymill.objective.log_probs import response_log_probs

UNHURRIED = settings(deadline=None, max_examples=40)
SEEDS = st.integers(0, 2**32 - 1)


def some_logits(seed: int, count: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    random = np.random.default_rng(seed)
    logits = random.normal(0, 3, (count, width)).astype(np.float32)
    return torch.from_numpy(logits), torch.from_numpy(random.integers(0, width, count))


def in_chunks_of(rows: int, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_probs, "CHUNK_ELEMENTS", rows * width)


@UNHURRIED
@given(seed=SEEDS, count=st.integers(0, 9), rows=st.integers(1, 10), temperature=st.floats(0.1, 3))
def test_values_and_gradients(seed: int, count: int, rows: int, temperature: float) -> None:
    """Both outputs' gradients together and one by one, whatever the chunks."""
    logits_NV, targets_N = some_logits(seed, count, 13)
    of_first_N, of_second_N = torch.randn(2, count)
    single_NV, double_NV = logits_NV.requires_grad_(), logits_NV.detach().double().requires_grad_()
    with pytest.MonkeyPatch.context() as patch:
        in_chunks_of(rows, 13, patch)
        found = response_log_probs(single_NV, targets_N, temperature)
        scores = [(found[0] * of_first_N).sum(), (found[1] * of_second_N).sum()]
        scores.append(scores[0] + scores[1])
        gradients = [torch.autograd.grad(x, single_NV, retain_graph=True)[0] for x in scores]
    exact_NV = torch.log_softmax(double_NV / temperature, dim=1)
    exact = exact_NV[torch.arange(count), targets_N], -(exact_NV.exp() * exact_NV).sum(dim=1)
    wanted = [(exact[0] * of_first_N).sum(), (exact[1] * of_second_N).sum()]
    wanted.append(wanted[0] + wanted[1])
    for ours_N, theirs_N in zip(found, exact, strict=True):
        assert ours_N.dtype == torch.float32
        torch.testing.assert_close(ours_N.double(), theirs_N, rtol=1e-5, atol=1e-5)
    for ours_NV, x in zip(gradients, wanted, strict=True):
        theirs_NV = torch.autograd.grad(x, double_NV, retain_graph=True)[0]
        torch.testing.assert_close(ours_NV.double(), theirs_NV, rtol=1e-4, atol=1e-4)


def test_by_loops() -> None:
    """The definition itself, without a softmax of anyone's."""
    logits_NV, targets_N = some_logits(1, 6, 9)
    log_prob_N, entropy_N = response_log_probs(logits_NV, targets_N, 0.7)
    for n, logits in enumerate(logits_NV.tolist()):
        weights = [math.exp(z / 0.7) for z in logits]
        probabilities = [w / sum(weights) for w in weights]
        assert log_prob_N[n].item() == pytest.approx(
            math.log(probabilities[targets_N[n]]), rel=1e-5
        )
        surprise = -sum(p * math.log(p) for p in probabilities)
        assert entropy_N[n].item() == pytest.approx(surprise, rel=1e-5)


@pytest.mark.parametrize("rows", [1, 3, 4, 100])
def test_chunks_change_no_bit(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    logits_NV, targets_N = some_logits(2, 8, 50)
    logits_NV.requires_grad_()

    def found() -> list[torch.Tensor]:
        both = response_log_probs(logits_NV, targets_N, 0.9)
        return [*both, *torch.autograd.grad(both[0].sum() + both[1].sum(), logits_NV)]

    whole = found()
    in_chunks_of(rows, 50, monkeypatch)
    assert all(torch.equal(a, b) for a, b in zip(found(), whole, strict=True))


def test_half_precision_is_raised_before_the_softmax() -> None:
    logits_NV, targets_N = some_logits(3, 64, 1000)
    half_NV = logits_NV.bfloat16().requires_grad_()
    log_prob_N, entropy_N = response_log_probs(half_NV, targets_N, 1.0)
    exact_NV = torch.log_softmax(half_NV.detach().double(), dim=1)
    exact_N = exact_NV.gather(1, targets_N[:, None])[:, 0]
    assert (log_prob_N.double() - exact_N).abs().max() < 1e-5
    assert entropy_N.dtype == torch.float32
    [gradient_NV] = torch.autograd.grad(log_prob_N.sum(), half_NV)
    assert gradient_NV.dtype == torch.bfloat16
    expected_NV = torch.nn.functional.one_hot(targets_N, 1000) - exact_NV.exp()
    torch.testing.assert_close(gradient_NV.double(), expected_NV, rtol=1e-2, atol=1e-6)


def test_tokens_that_cannot_be_drawn() -> None:
    """A mask of -inf over the vocabulary leaves what it would be without those columns."""
    logits_NV, targets_N = some_logits(4, 5, 8)
    masked_NV = torch.cat([logits_NV, torch.full((5, 3), -math.inf)], dim=1).requires_grad_()
    logits_NV.requires_grad_()
    for one, other in zip(
        response_log_probs(masked_NV, targets_N, 1.3),
        response_log_probs(logits_NV, targets_N, 1.3),
        strict=True,
    ):
        torch.testing.assert_close(one, other)
        [wide_NV] = torch.autograd.grad(one.sum(), masked_NV, retain_graph=True)
        [narrow_NV] = torch.autograd.grad(other.sum(), logits_NV, retain_graph=True)
        torch.testing.assert_close(wide_NV[:, :8], narrow_NV)
        assert not wide_NV[:, 8:].any()
    never_N, _ = response_log_probs(masked_NV, torch.full((5,), 9), 1.3)
    assert never_N.tolist() == [-math.inf] * 5


def test_large_logits_and_certainty() -> None:
    logits_NV = torch.tensor([[1e4, 0.0, -1e4], [88.0, 88.0, 88.0]], requires_grad=True)
    log_prob_N, entropy_N = response_log_probs(logits_NV, torch.tensor([0, 1]), 1.0)
    (log_prob_N.sum() + entropy_N.sum()).backward()
    assert log_prob_N.tolist() == pytest.approx([0.0, -math.log(3)])
    assert entropy_N.tolist() == pytest.approx([0.0, math.log(3)])
    assert logits_NV.grad is not None and torch.isfinite(logits_NV.grad).all()


def test_the_gradient_reaches_what_made_the_logits() -> None:
    """Gradients hold where several losses share the logits, and where only one of the outputs is used."""
    _, targets_N = some_logits(5, 7, 11)
    head, hidden_NH = torch.nn.Linear(4, 11), torch.randn(7, 4)
    gradients = []
    for function in (response_log_probs, plainly):
        logits_NV = head(hidden_NH)
        log_prob_N, _ = function(logits_NV, targets_N, 0.8)
        loss = -log_prob_N.mean() + 0.1 * logits_NV.square().mean()
        gradients.append(torch.autograd.grad(loss, head.weight)[0])
    torch.testing.assert_close(*gradients)


def plainly(
    logits_NV: torch.Tensor, targets_N: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """All at once, as autograd would have it."""
    log_probs_NV = torch.log_softmax(logits_NV.float() / temperature, dim=1)
    entropy_N = -(log_probs_NV.exp() * log_probs_NV).sum(dim=1)
    return log_probs_NV.gather(1, targets_N[:, None]).squeeze(1), entropy_N


def peak_bytes(action: Callable[[], object]) -> int:
    """The most that was allocated at once, above what there was before."""
    activity = torch.profiler.ProfilerActivity.CPU
    with torch.profiler.profile(activities=[activity], profile_memory=True) as profile:
        kept = action()
    results = profile.profiler.kineto_results  # type: ignore[union-attr]
    events = [event for event in results.events() if event.name() == "[memory]"]
    assert events, "the profiler reports allocations"
    now = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    del kept
    return most


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_memory_is_bounded_by_the_chunk(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The forward pass keeps nothing of the vocabulary's width; the backward pass has the gradient, and a
    chunk. As autograd would have it, both would have several fp32 copies of everything."""
    count, width, rows = 256, 4096, 8
    in_chunks_of(rows, width, monkeypatch)
    logits_NV, targets_N = some_logits(6, count, width)
    logits_NV = logits_NV.to(dtype).requires_grad_()
    size, chunk = logits_NV.numel() * logits_NV.element_size(), rows * width * 4
    found = []
    forward = peak_bytes(lambda: found.append(response_log_probs(logits_NV, targets_N, 0.7)))
    assert forward < 6 * chunk
    backward = peak_bytes(lambda: (found[0][0].sum() + found[0][1].sum()).backward())
    assert size <= backward < size + 8 * chunk
    assert peak_bytes(lambda: plainly(logits_NV, targets_N, 0.7)) > 2 * count * width * 4


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_trl(temperature: float) -> None:
    utils = pytest.importorskip("trl.trainer.utils", reason="TRL is in the dev extra")
    logits_NV, targets_N = some_logits(7, 12, 30)
    logits_NV.requires_grad_()
    ours = response_log_probs(logits_NV, targets_N, temperature)
    theirs = utils.selective_log_softmax_and_entropy(logits_NV, targets_N, temperature=temperature)
    for our_N, their_N in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our_N, their_N)
        both = [
            torch.autograd.grad(x.sum(), logits_NV, retain_graph=True)[0] for x in (our_N, their_N)
        ]
        torch.testing.assert_close(*both, rtol=1e-4, atol=1e-5)
