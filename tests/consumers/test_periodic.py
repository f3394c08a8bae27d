"""Work that is repeated: when it pauses and for how long, what ends it, what a failure does. No test sleeps: the pauses are recorded."""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable

import pytest

from consumers.periodic import Backoff, Periodic


class Pauses(threading.Event):
    """An event whose pauses take no time. seconds: each pause that was asked for; after `most` of them, `then` is called."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.seconds: list[float | None] = []
        self.most = most
        self.then: Callable[[], None] = lambda: None

    def wait(self, timeout: float | None = None) -> bool:
        self.seconds.append(timeout)
        if len(self.seconds) >= self.most:
            self.then()
        return self.is_set()


def repeated(work: Callable[[], object], most: int, **options: object) -> list[float | None]:
    """The pauses of a run that ends with the pause number `most`."""
    pauses = Pauses(most)
    periodic = Periodic("test", work, 10.0, event=pauses, **options)  # type: ignore[arg-type]
    pauses.then = periodic.end
    periodic.run()
    return pauses.seconds


class Turns:
    """Counts turns; `answers` says how each one ends, the last one for ever."""

    def __init__(self, *answers: object) -> None:
        self.answers, self.count = answers, 0

    def __call__(self) -> object:
        answer = self.answers[min(self.count, len(self.answers) - 1)]
        self.count += 1
        if isinstance(answer, Exception):
            raise answer
        return answer


# ------------------------------------------------------------------------------------------------------- backoff


def test_pauses_double_up_to_the_longest() -> None:
    backoff = Backoff(0.05, 1.0, spread=0.0)
    assert [backoff.next_s() for _ in range(7)] == pytest.approx([0.05, 0.1, 0.2, 0.4, 0.8, 1.0, 1.0])
    assert backoff.failures == 7


def test_a_success_starts_them_again() -> None:
    backoff = Backoff(1.0, 300.0, spread=0.0)
    for _ in range(5):
        backoff.next_s()
    backoff.reset()
    assert (backoff.failures, backoff.next_s()) == (0, 1.0)


@pytest.mark.parametrize(("spread", "least", "low"), [(0.5, 0.0, 0.5), (1.0, 0.0, 0.0), (1.0, 0.25, 0.25)])
def test_a_pause_is_drawn_between_its_bounds(spread: float, least: float, low: float) -> None:
    drawn = [Backoff(1.0, 8.0, spread, least, random.Random(seed)).next_s() for seed in range(400)]
    assert low <= min(drawn) < low + 0.02
    assert 0.98 < max(drawn) <= 1.0


def test_two_processes_do_not_come_back_in_step() -> None:
    first, second = Backoff(0.1, 5.0, rng=random.Random(1)), Backoff(0.1, 5.0, rng=random.Random(2))
    assert all(first.next_s() != second.next_s() for _ in range(20))


def test_very_many_failures_overflow_nothing() -> None:
    backoff = Backoff(1.0, 300.0, spread=0.0, failures=100_000)
    assert backoff.next_s() == 300.0


# ------------------------------------------------------------------------------------------------------ periodic


def test_work_comes_first_and_then_every_so_often() -> None:
    turns = Turns(None)
    assert repeated(turns, 3) == [10.0, 10.0, 10.0]
    assert turns.count == 3


def test_the_first_pause_may_come_first() -> None:
    turns = Turns(None)
    assert repeated(turns, 3, at_once=False) == [10.0, 10.0, 10.0]
    assert turns.count == 2


def test_the_usual_pause_can_be_spread() -> None:
    pauses = [pause for pause in repeated(Turns(True), 200, spread=0.1) if pause is not None]
    assert 9.0 <= min(pauses) < 9.2
    assert 10.8 < max(pauses) <= 11.0


def test_failures_are_backed_off_and_a_success_ends_that() -> None:
    turns = Turns(False, False, False, True, False, True)
    pauses = repeated(turns, 6, backoff=Backoff(1.0, 3.0, spread=0.0))
    assert pauses == [1.0, 2.0, 3.0, 10.0, 1.0, 10.0]


def test_without_a_backoff_a_failure_pauses_as_usual() -> None:
    assert repeated(Turns(False), 2) == [10.0, 10.0]


def test_an_unforeseen_error_is_logged_backed_off_and_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    turns = Turns(RuntimeError("bug"), True)
    with caplog.at_level(logging.ERROR):
        assert repeated(turns, 2, backoff=Backoff(1.0, 3.0, spread=0.0)) == [1.0, 10.0]
    assert turns.count == 2
    assert "bug" in caplog.text
    assert "test failed; trying again" in caplog.text


def test_its_owner_may_end_it_on_an_error() -> None:
    errors: list[Exception] = []

    def failed(error: Exception) -> bool:
        errors.append(error)
        return False

    turns = Turns(RuntimeError("bug"))
    assert repeated(turns, 5, failed=failed) == []
    assert (turns.count, [str(error) for error in errors]) == (1, ["bug"])


def test_the_end_is_not_followed_by_another_turn() -> None:
    periodic = Periodic("test", lambda: periodic.end(), 10.0, event=Pauses(9))
    periodic.run()
    assert periodic.ending


def test_waking_ends_a_pause_and_stopping_the_thread() -> None:
    """With a real thread: pauses of an hour, so that only `wake` and `stop` can end them."""
    turned = threading.Semaphore(0)
    periodic = Periodic("test", turned.release, 3600.0)
    assert not periodic.alive
    periodic.start()
    assert turned.acquire(timeout=10)
    periodic.wake()
    assert turned.acquire(timeout=10)
    periodic.stop()
    assert not periodic.alive


def test_stopping_what_never_started_is_no_error() -> None:
    Periodic("test", lambda: None, 1.0).stop()
