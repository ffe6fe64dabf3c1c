"""Which attempts count as lost, by the watcher's clock alone, and what follows for a task."""

from __future__ import annotations

from pathlib import Path

import pytest

from retrodb.encode.encoder import NotFiniteError, OutOfDeviceMemory
from retrodb.engine.attempts import (
    ATTEMPTS_OF_A_TASK,
    Attempt,
    Claim,
    History,
    LifeSign,
    State,
    StoredError,
    Watch,
    allow_retries,
    attempts_of,
    claim,
    num_retries,
    read_claim,
    read_sign,
    sign,
)
from retrodb.errors import InputError, RetroDBError
from retrodb.store.storage import LocalStorage

RUN, TASK = "a" * 32, "b" * 32


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def storage(tmp_path: Path) -> LocalStorage:
    return LocalStorage(tmp_path)


def history(*states: State | str) -> History:
    return History(TASK, [Attempt(RUN, TASK, number + 1) for number in range(len(states))], states)  # type: ignore[arg-type]


def test_one_of_several_workers_gets_an_attempt(storage: LocalStorage) -> None:
    attempt = Attempt(RUN, TASK, 1)
    won = [claim(storage, attempt, name, TASK, "2026-01-01") for name in ("first", "second", "third")]
    assert won == [True, False, False]
    assert read_claim(storage, attempt) == Claim("first", TASK, "2026-01-01")


def test_attempts_are_listed_by_number(storage: LocalStorage) -> None:
    for number in (10, 2, 1):
        claim(storage, Attempt(RUN, TASK, number), "worker", TASK, "")
    assert [attempt.number for attempt in attempts_of(storage, RUN)[TASK]] == [1, 2, 10]
    assert attempts_of(storage, "c" * 32) == {}


def test_an_attempt_is_lost_when_it_shows_no_sign_of_life_for_the_lease(storage: LocalStorage) -> None:
    clock, attempt = Clock(), Attempt(RUN, TASK, 1)
    watch = Watch(storage, 10.0, clock)
    clock.now = 1000.0
    assert watch.state(attempt) == "running"  # seen for the first time now
    clock.now += 9
    sign(storage, attempt, 1, "running")
    assert watch.state(attempt) == "running"
    clock.now += 10
    assert watch.state(attempt) == "running"
    clock.now += 1
    assert watch.state(attempt) == "lost"
    sign(storage, attempt, 2, "running")  # it was slow, and lives
    assert watch.state(attempt) == "running"


@pytest.mark.parametrize("state", ["returned", "failed", "died"])
def test_what_a_worker_says_about_an_attempt_is_known_at_once(storage: LocalStorage, state: State) -> None:
    attempt = Attempt(RUN, TASK, 1)
    sign(storage, attempt, 1, state, StoredError.of(InputError("bad", where="here", remedy="Fix it.")))
    assert Watch(storage, 10.0).state(attempt) == state


def test_a_torn_sign_of_life_is_none(storage: LocalStorage) -> None:
    attempt, clock = Attempt(RUN, TASK, 1), Clock()
    watch = Watch(storage, 10.0, clock)
    storage.write(attempt.sign_path, b'{"count": 1')
    assert watch.state(attempt) == "running"
    clock.now = 11
    assert watch.state(attempt) == "lost"
    assert read_sign(storage, Attempt(RUN, TASK, 2)) == LifeSign(0, "running")


def test_an_error_comes_back_as_it_was() -> None:
    error = InputError("not JSON", where="a.jsonl, line 3", remedy="Fix this line.")
    again = StoredError.of(error).error()
    assert (type(again), str(again)) == (InputError, str(error))
    for unknown in ("retrodb.errors:EXIT_OK", "retrodb.errors:NewError", "os:system", "", "retrodb.none:X"):
        assert type(StoredError(unknown, "what", None, None).error()) is RetroDBError
    assert type(StoredError.of(OutOfDeviceMemory("full")).error()) is OutOfDeviceMemory
    assert (
        type(StoredError.of(NotFiniteError("NaN", 3, "Fix it.")).error()) is InputError
    )  # its own constructor differs


def test_a_task_that_was_given_back_often_is_no_suspect() -> None:
    preempted = history(*["returned"] * 20)
    assert not preempted.is_suspect(0)
    assert not preempted.is_set_aside(0)


@pytest.mark.parametrize("how", ["lost", "died", "running"])  # an older one that runs has ended, as the next one says
def test_a_task_that_lost_three_workers_runs_alone_once_more(how: str) -> None:
    lost = history(*[how] * ATTEMPTS_OF_A_TASK, "lost")
    assert history(*[how] * (ATTEMPTS_OF_A_TASK - 1), "lost").is_suspect(0)
    assert not history(*[how] * (ATTEMPTS_OF_A_TASK - 1), "lost").is_set_aside(0)
    assert not history(*[how] * ATTEMPTS_OF_A_TASK, "running").is_set_aside(0)
    assert lost.is_set_aside(0)
    assert not lost.is_set_aside(1)


def test_a_task_that_failed_three_times_is_set_aside() -> None:
    assert not history("failed", "failed").is_set_aside(0)
    assert history("failed", "returned", "failed", "failed").is_set_aside(0)
    assert not history("failed", "returned", "failed", "failed").is_set_aside(1)


def test_retries_are_counted(storage: LocalStorage) -> None:
    allow_retries(storage, RUN)
    allow_retries(storage, RUN)
    assert num_retries(storage, RUN) == 2
    assert num_retries(storage, "c" * 32) == 0


def test_only_a_worker_that_may_be_alive_keeps_its_output_names() -> None:
    last = Claim("worker", "d" * 32, "")
    assert history().next_output(None) == TASK
    for ended in ("returned", "failed", "died"):
        assert history(ended).next_output(last) == last.output
    names = {history(*["lost"] * count).next_output(last) for count in (1, 2)}
    assert len(names | {TASK, last.output}) == 4
