"""The pool outlives everything that functions do, and leaves no process behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from raymill.rl.reward import pool as reward_pool
from raymill.rl.reward.pool import RewardPool
from raymill.rl.reward.sandbox import unavailable
from raymill.rl.reward.task import RewardError, Score
from rl.reward.samples import sample

HOSTILE = "rl.reward.hostile:"


def own(name: str) -> str:
    return HOSTILE + name


@pytest.fixture(scope="module")
def pool() -> Iterator[RewardPool]:
    """One worker, so that what a call leaves behind meets the next."""
    with RewardPool(workers=1, timeout_s=1.0, names=[own("behave")]) as found:
        yield found


def one(pool: RewardPool, name: str, answer: str = "3") -> Score:
    """A call's score, in which it is surrounded by innocent ones."""
    calls = [(own("behave"), "1"), (own(name), answer), (own("behave"), "2")]
    before, score, after = pool.score([(name, sample(answer)) for name, answer in calls])
    assert (before.value, after.value) == (1.0, 2.0)
    return score


@pytest.mark.parametrize(
    ("name", "said", "replaced"),
    [
        ("raises", "raised KeyError: '3'", False),
        ("leaves", "raised SystemExit: 3", False),
        ("misses", "import failed: ", False),
        ("exits", "died: rl.reward.hostile:exits ended its process (exit status 7)", True),
        ("crashes", "died: rl.reward.hostile:crashes ended its process (signal 11)", True),
        ("closes_everything", "died: ", True),
        ("hangs", "timeout: rl.reward.hostile:hangs took longer than 1 s", True),
        ("hangs_in_c", "timeout: ", True),
        ("answers_long", "raised ValueError: xxx", False),
    ],
)
def test_what_a_function_does_costs_its_sample_only(
    pool: RewardPool, name: str, said: str, replaced: bool
) -> None:
    before = pool.restarts
    score = one(pool, name)
    assert score.value is None and score.error is not None and score.error.startswith(said)
    assert pool.restarts - before == replaced
    assert len(score.error) <= 500


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("nan", "not finite"), ("infinity", "not finite"), ("none", "not a number"),
        ("text", "not a number"), ("huge", "not a number"), ("list", "not a number"),
        ("complex", "not a number"), ("bool", 1.0), ("integer", 3.0),
    ],
)  # fmt: skip
def test_only_finite_numbers_are_scores(pool: RewardPool, kind: str, expected: str | float) -> None:
    score = one(pool, "returns", kind)
    assert expected in (score.cause, score.value)
    assert (score.value is None) == isinstance(expected, str)


def test_standard_streams_are_not_the_pipes(pool: RewardPool) -> None:
    assert one(pool, "prints").value == 1.0
    assert one(pool, "reads").value == 0.0


def test_memory_is_limited() -> None:
    with RewardPool(timeout_s=5.0, memory_bytes=400 * 10**6) as pool:
        assert one(pool, "hogs").cause == "raised MemoryError"
        assert pool.restarts == 0


def test_registered_functions_those_of_prompts_included(pool: RewardPool) -> None:
    calls = [
        ("exact", sample("#### 5", "5")),
        ("exact", sample("5")),
        ("auto", sample("red blue", "red", verifier="answer_f1")),
        ("auto", sample("x", verifier="tests_own")),  # registered by a module that names= loaded
        ("auto", sample("x", verifier="os:system")),
        ("exakt", sample("x")),
        ("regex", sample("a" * 60 + "!", "^(a+)+$")),
    ]
    before = pool.restarts
    scores = pool.score(calls)
    assert [score.value for score in scores] == [
        1.0, None, pytest.approx(2 / 3), 0.25, None, None, None,
    ]  # fmt: skip
    assert [score.cause for score in scores if score.error] == [
        "no reference", "unknown verifier", "unknown function", "timeout",
    ]  # fmt: skip
    assert pool.restarts == before, "the expression's own limit ends it, and not the pool"


def test_a_function_that_uses_all_its_time_is_heard(pool: RewardPool) -> None:
    before = pool.restarts
    score = one(pool, "uses_all_its_time")
    assert (score.value, score.error) == (1.0, None)
    assert pool.restarts == before


def test_what_cannot_be_sent_is_an_error(pool: RewardPool) -> None:
    (score,) = pool.score([("exact", sample("5", "5", extra={"f": lambda: 0}))])
    assert score.cause == "not sendable"
    assert pool.score([]) == []


def test_a_large_sample_goes_through(pool: RewardPool) -> None:
    text = "9" * 5_000_000
    (score,) = pool.score([("contains", sample(text, text))])
    assert score.value == 1.0


def test_results_are_in_order_and_do_not_depend_on_the_number_of_workers() -> None:
    calls = [(own("behave_slowly"), sample(str(number))) for number in range(20)]
    calls += [(own("draw"), sample(str(number))) for number in range(10)]
    calls += [(own("raises"), sample("x")), (own("exits"), sample("x"))]
    calls += [(own("draw"), sample("1")), (own("behave"), sample("5"))]
    found = []
    for workers in (1, 3):
        with RewardPool(workers=workers, timeout_s=5.0) as pool:
            found.append([(score.value, score.error) for score in pool.score(calls)])
            assert pool.restarts == 1
    assert found[0] == found[1]
    assert [value for value, _ in found[0][:20]] == list(range(20))
    assert found[0][21] == found[0][32]  # the same sample draws the same again


def test_workers_start_when_they_are_needed() -> None:
    before = _children()
    with RewardPool(workers=4, timeout_s=5.0) as pool:
        assert _children() == before
        pool.score([("exact", sample("5", "5"))])
        assert len(_children() - before) == 1
        pool.score([(own("behave_slowly"), sample("5"))] * 12)
        assert len(_children() - before) == 4
    assert _gone(_children() - before)


def test_a_worker_that_died_between_batches_costs_nothing() -> None:
    before = _children()
    with RewardPool(timeout_s=5.0) as pool:
        assert one(pool, "behave").value == 3.0
        (worker,) = _children() - before
        worker.kill()
        assert _gone({worker})
        time.sleep(0.2)
        assert one(pool, "behave").value == 3.0
        assert pool.restarts == 0


def test_a_killed_worker_takes_its_children_along(tmp_path: Path) -> None:
    with RewardPool(timeout_s=0.8) as pool:
        assert one(pool, "hangs_with_a_child", str(tmp_path / "pid")).cause == "timeout"
    child = int((tmp_path / "pid").read_text())
    assert _until(lambda: not psutil.pid_exists(child) or _is_zombie(child))


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C raises, also where the tests were started in a shell's background, which ignores it."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, previous)


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_gives_calls_up_and_the_pool_can_be_used_again() -> None:
    with RewardPool(workers=2, timeout_s=60.0) as pool:
        pool.score([("exact", sample("5", "5"))] * 4)
        main = threading.main_thread().ident
        assert main is not None
        threading.Timer(0.5, signal.pthread_kill, (main, signal.SIGINT)).start()
        with pytest.raises(KeyboardInterrupt):
            pool.score([(own("hangs"), sample())] * 3)
        begin = time.monotonic()
        scores = pool.score([(own("behave"), sample(str(number))) for number in range(6)])
        assert [score.value for score in scores] == list(range(6))
        assert time.monotonic() - begin < 10


def test_several_threads_may_ask_and_the_one_that_made_it_may_end() -> None:
    made: list[RewardPool] = []
    maker = threading.Thread(
        target=lambda: (
            made.append(RewardPool(workers=2, timeout_s=5.0))
            or made[0].score([(own("behave"), sample("1"))])
        )
    )
    maker.start()
    maker.join()
    (pool,) = made
    found: dict[int, list[float | None]] = {}

    def ask(first: int) -> None:
        calls = [(own("behave_slowly"), sample(str(first + n))) for n in range(10)]
        found[first] = [score.value for score in pool.score(calls)]

    threads = [threading.Thread(target=ask, args=(first,)) for first in (0, 100, 200)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {first: [first + n for n in range(10)] for first in (0, 100, 200)}
    assert pool.restarts == 0
    pool.close()
    pool.close()
    with pytest.raises(RewardError, match=r"^no pool:"):
        pool.score([("exact", sample("5", "5"))])


def test_workers_that_do_not_start_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    with RewardPool(workers=2, timeout_s=5.0) as pool:
        monkeypatch.setattr(sys, "executable", "/bin/false")
        with pytest.raises(RewardError, match=r"^no worker: .*exit status 1"):
            pool.score([("exact", sample("5", "5"))] * 3)
        monkeypatch.undo()
        assert one(pool, "behave").value == 3.0


def test_an_import_without_end_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "endless_rewards.py").write_text("import time; time.sleep(600)")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(reward_pool, "START_SECONDS", 1.0)
    with (
        RewardPool(names=["endless_rewards:f"]) as pool,
        pytest.raises(RewardError, match=r"^no worker: .*importing endless_rewards:f takes over"),
    ):
        pool.score([("exact", sample("5", "5"))])


def test_a_forked_process_has_no_pool(pool: RewardPool) -> None:
    child = os.fork()
    if child == 0:
        try:
            pool.close()
            pool.score([("exact", sample("5", "5"))])
        except RewardError:
            os._exit(0)
        os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    assert one(pool, "behave").value == 3.0


def test_a_worker_loads_little() -> None:
    script = "import sys, raymill.rl.reward.worker; print(*{n.split('.')[0] for n in sys.modules})"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert not {"torch", "numpy", "ray", "mlflow", "yaml", "asyncio"} & set(done.stdout.split())


def test_arguments() -> None:
    for settings in ({"workers": 0}, {"timeout_s": 0.0}):
        with pytest.raises(ValueError, match="expected workers"):
            RewardPool(**settings)  # type: ignore[arg-type]


BUSY = """
code = ("code", sample("while True: pass", "pass"))
pool.score([("rl.reward.hostile:hangs_in_c", sample()), code])
"""
SERVED = """
pool.score([("rl.reward.hostile:behave_slowly", sample("1"))] * 4)
print("served", flush=True)
time.sleep(0.5)  # for the test to look
"""
WAYS = {
    "killed while busy": BUSY,
    "raises": SERVED + "1 / 0",
    "exits": SERVED + "os._exit(3)",
    "ends": SERVED,
}


@pytest.mark.parametrize("way", WAYS)
def test_no_process_outlives_the_parent(way: str, tmp_path: Path) -> None:
    script = f"""
import os, time
from raymill.rl.reward import pool as reward_pool
from raymill.rl.reward.pool import RewardPool
from rl.reward.samples import sample
pool = RewardPool(workers=2, timeout_s=100.0)
{WAYS[way]}
"""
    environment = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    parent = psutil.Process(process.pid)
    if WAYS[way] == BUSY:
        # Two workers, and the process that runs code.
        wanted = 3 if unavailable() is None else 2
        assert _until(lambda: len(parent.children(recursive=True)) == wanted)
        time.sleep(0.3)
        children = set(parent.children(recursive=True))
        process.kill()
    else:
        assert process.stdout is not None and process.stdout.readline() == b"served\n"
        children = set(parent.children(recursive=True))
        assert len(children) == 2
    process.wait(timeout=20)
    assert _gone(children)
    if way in ("raises", "ends"):
        assert list(tmp_path.iterdir()) == []


def _children() -> set[psutil.Process]:
    return set(psutil.Process().children(recursive=True))


def _gone(processes: set[psutil.Process]) -> bool:
    return _until(
        lambda: all(not process.is_running() or _is_zombie(process.pid) for process in processes)
    )


def _is_zombie(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def _until(condition: Callable[[], bool], seconds: float = 15.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.02)
    return False
