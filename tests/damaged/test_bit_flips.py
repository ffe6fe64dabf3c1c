"""One bit of one file flips before a process starts, and the file's modification time stays: no answer is wrong.

Every answer of a search, a query, an export and a neighbour list is that of the undamaged database, or an error that names the
file.
"""

from __future__ import annotations

import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flipped import flip_bit, forget_verified

import retrodb
from retrodb.database import Database
from retrodb.errors import EXIT_DAMAGE, EXIT_NO_DATABASE, RetroDBError

from .test_matrix import files_by_kind

QUERIES = ["ban kaban lodor", "tufel pefel", "a question"]


def asked(root: Path, out: Path) -> dict[str, Callable[[], Any]]:
    def database() -> Database:
        return retrodb.open(root)

    return {
        "search": lambda: database().search(QUERIES, k=4),
        "filtered search": lambda: [hit.chunk_id for hit in database().search(QUERIES, k=9, source="first")[0]],
        "sql documents": lambda: database().sql("select doc_id, num_tokens, live from documents order by all").rows,
        "sql chunks": lambda: database().sql("select chunk_id, num_tokens, text, live from chunks order by 1").rows,
        "export": lambda: exported(database(), out),
        "neighbours show": lambda: [database().show_neighbours(row) for row in (0, 7, 31)],
        "neighbours of queries": lambda: database().show_neighbours(1, table="training"),
    }


def exported(database: Database, out: Path) -> dict[str, bytes]:
    database.export(out, to="arrays", is_registered=False)
    return {path.name: path.read_bytes() for path in sorted(out.rglob("*.npy"))}


@pytest.fixture(scope="module")
def right(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    asks = asked(whole, tmp_path_factory.mktemp("right") / "out")
    answers = {name: ask() for name, ask in asks.items()}
    assert all(answers.values())
    return answers


def answers_after_a_flip(root: Path, rng: random.Random, right: dict[str, Any]) -> Counter[str]:
    """Flip a random bit of a random file of a random kind; gives how many commands were right, and how many refused."""
    by_kind = files_by_kind(root)
    paths = by_kind[rng.choice(sorted(by_kind))]
    path = rng.choice(paths)
    position, bit = rng.randrange((root / path).stat().st_size), rng.randrange(8)
    flip_bit(root / path, position, bit)
    forget_verified()  # as in another process
    shutil.rmtree(root.parent / "out", ignore_errors=True)
    outcomes = Counter[str]()
    for name, ask in asked(root, root.parent / "out").items():
        answer = outcome(ask)
        what = f"bit {bit} of byte {position} of {path}: {name}: {answer}"
        if isinstance(answer, RetroDBError):
            assert answer.exit_code in (EXIT_DAMAGE, EXIT_NO_DATABASE), what
            assert path in str(answer), what
            outcomes["refused"] += 1
        else:
            assert answer == right[name], what
            outcomes["right"] += 1
    return outcomes


def outcome(ask: Callable[[], Any]) -> Any:
    """The answer, or the error that refuses it."""
    try:
        return ask()
    except RetroDBError as error:
        return error


@pytest.mark.parametrize("part", range(2))
def test_twenty_flipped_bits_give_no_wrong_answer(part: int, copy: Callable[[], Path], right: dict[str, Any]) -> None:
    outcomes = Counter[str]()
    for case in range(10):
        outcomes += answers_after_a_flip(copy(), random.Random(f"{part} {case}"), right)
    assert outcomes["right"] > 0
    assert outcomes["refused"] > 0


@pytest.mark.soak
def test_three_hundred_flipped_bits_give_no_wrong_answer(copy: Callable[[], Path], right: dict[str, Any]) -> None:
    outcomes = Counter[str]()
    for case in range(300):
        outcomes += answers_after_a_flip(copy(), random.Random(case), right)
    assert min(outcomes["right"], outcomes["refused"]) > 100
