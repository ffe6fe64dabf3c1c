"""Every kind of file, damaged in every way: a check finds it, and no reading command gives a wrong answer."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import retrodb
from retrodb.errors import EXIT_DAMAGE, EXIT_NO_DATABASE, RetroDBError
from retrodb.format.kinds import KINDS
from retrodb.format.snapshot import snapshot_path

from .asked import answers

NEVER_NAMED = {
    "runs",
    "queue",
    "heads",
    "collection",
    "checked",
    "repairing",
}  # no snapshot names them, and no reader asks them
CASES_A_KIND = 204  # 34 of each harm


def flip(path: Path, rng: random.Random, others: list[Path]) -> None:
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def truncate(path: Path, rng: random.Random, others: list[Path]) -> None:
    os.truncate(path, rng.randrange(path.stat().st_size))


def zero(path: Path, rng: random.Random, others: list[Path]) -> None:
    data = bytearray(path.read_bytes())
    start = rng.randrange(len(data))
    end = rng.randint(start + 1, min(len(data), start + 4096))
    data[start:end] = bytes(end - start)
    if bytes(data) == path.read_bytes():
        return flip(path, rng, others)
    path.write_bytes(data)
    return None


def delete(path: Path, rng: random.Random, others: list[Path]) -> None:
    path.unlink()


def swap(path: Path, rng: random.Random, others: list[Path]) -> Path:
    mine, other = path.read_bytes(), rng.choice(others)
    path.write_bytes(other.read_bytes())
    other.write_bytes(mine)
    return other


def older(path: Path, rng: random.Random, others: list[Path]) -> None:
    """As if a file of another time had been laid over it."""
    shutil.copyfile(rng.choice(others), path)


HARMS: dict[str, Callable[[Path, random.Random, list[Path]], Any]] = {
    harm.__name__: harm for harm in (flip, truncate, zero, delete, swap, older)
}


def files_by_kind(root: Path) -> dict[str, list[str]]:
    """The live files of the newest snapshot by kind, and the snapshots and segments."""
    database = retrodb.open(root)
    view = database.view()
    found: dict[str, list[str]] = {}
    for record in view.manifest.all_files():
        found.setdefault(record.kind, []).append(record.path)
    found["rows"] = view.manifest.row_files()
    found["blocks"] = view.manifest.block_files()
    found["snapshots"] = [snapshot_path(number) for number in range(view.snapshot.number + 1)]
    found["manifests"] = [f"manifests/{ref.digest}.parquet" for ref in view.snapshot.segments]
    return found


@pytest.fixture(scope="module")
def by_kind(whole: Path) -> dict[str, list[str]]:
    return files_by_kind(whole)


def test_the_database_has_every_kind_of_file(by_kind: dict[str, list[str]]) -> None:
    unmade = set(KINDS) - NEVER_NAMED - set(by_kind)
    assert unmade <= {"edits", "purged"}


def run_case(kind: str, case: int, root: Path, by_kind: dict[str, list[str]], truth: dict[str, Any]) -> None:
    """Damage one file of a new copy, and compare all answers with those of the undamaged database."""
    rng, harm = random.Random(f"{kind} {case}"), list(HARMS)[case % len(HARMS)]
    path = rng.choice(by_kind[kind])
    other = HARMS[harm](root / path, rng, siblings(root, path))
    what = f"{harm} {path} (case {case})"
    try:
        database = retrodb.open(root)
        damaged = {each.path for each in database.check(read_data=True).damaged}
        results = answers(database)
    except RetroDBError as error:  # the database does not open: this is the answer to every command
        damaged, results = {str(error.where)}, {"open": error}
    if path == by_kind["snapshots"][-1] and harm == "delete":
        # The snapshot before it answers. The record of the newest number shows that it is missing.
        assert damaged == {path}, what
        return
    if harm == "swap" and "open" in results:  # the newest snapshot hides the damage of the one that it was swapped with
        assert damaged & {path, other.relative_to(root).as_posix()}, what
    else:
        assert path in damaged, what
    for name, answer in results.items():
        is_refused = isinstance(answer, RetroDBError) and answer.exit_code in (EXIT_DAMAGE, EXIT_NO_DATABASE)
        assert is_refused or answer == truth[name], f"{what}: {name}: {answer}"


def siblings(root: Path, path: str) -> list[Path]:
    """Files of the same kind with other bytes, if possible with the same suffix; any other files when there are none.

    Snapshots and manifests are not among the other files: swapping in one of them could not be told from a valid database.
    """
    content = (root / path).read_bytes()
    rest = [each for each in sorted(root.rglob("*")) if each.is_file() and each.read_bytes() not in (content, b"")]
    of_kind = [each for each in rest if each.relative_to(root).parts[0] == path.partition("/")[0]]
    folders = [(each, each.relative_to(root).parts[:-1]) for each in rest]
    others = [each for each, above in folders if above and above[0] not in ("snapshots", "manifests")]
    return [each for each in of_kind if each.suffix == Path(path).suffix] or of_kind or others


KIND_NAMES = sorted(set(KINDS) - NEVER_NAMED - {"edits", "purged"})


@pytest.mark.parametrize("kind", KIND_NAMES)
def test_damage_is_found_and_never_gives_a_wrong_answer(
    kind: str, copy: Callable[[], Path], by_kind: dict[str, list[str]], truth: dict[str, Any]
) -> None:
    """One of the two hundred cases, with another damage for each kind."""
    place = KIND_NAMES.index(kind)
    run_case(kind, place % len(HARMS) + len(HARMS) * place, copy(), by_kind, truth)


@pytest.mark.soak
@pytest.mark.parametrize("kind", KIND_NAMES)
def test_two_hundred_damages_of_each_kind(
    kind: str, copy: Callable[[], Path], by_kind: dict[str, list[str]], truth: dict[str, Any]
) -> None:
    for case in range(CASES_A_KIND):
        run_case(kind, case, copy(), by_kind, truth)
