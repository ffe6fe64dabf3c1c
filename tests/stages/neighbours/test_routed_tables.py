"""A table whose rows are routed to few ranges of lists is the same for any execution, and a repair keeps to its routing."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from made_documents import WORDS, write_documents

import retrodb
from retrodb.database import Database
from retrodb.errors import UsageError
from retrodb.format.entries import TableEntry
from retrodb.format.json_codec import from_json, to_json
from retrodb.stages.neighbours import command, range_join
from retrodb.stages.neighbours.new_neighbours import find_new_neighbours
from retrodb.stages.neighbours.range_join import range_bounds
from retrodb.stages.neighbours.repair_state import planned_state
from retrodb.stages.neighbours.repair_task import list_bounds
from retrodb.stages.planned_view import PlannedSnapshot
from retrodb_cli.main import cli

from .test_range_join import contents

LISTS, ROUTES = 64, 16
OPTIONS: dict[str, Any] = {"k": 4, "spare_neighbours": 2, "recall": 0.9, "route_ranges": ROUTES}
TOPICS = 60


def topical_text(number: int) -> str:
    """Words of a topic, which has about 40 documents, and a few others: texts of a topic are near each other."""
    of_topic = random.Random(number % TOPICS).sample(WORDS, 10)
    of_text = random.Random(f"{number}")
    return " ".join(of_text.choice(of_topic if of_text.random() < 0.5 else WORDS) for _ in range(50))


def documents(first: int, end: int) -> dict[str, str]:
    return {f"d{number}": topical_text(number) for number in range(first, end)}


@pytest.fixture(scope="module")
def topical(tmp_path_factory: pytest.TempPathFactory, made_tokenizer: Path) -> Path:
    """Several shards and parts, and deleted documents."""
    folder = tmp_path_factory.mktemp("topical")
    db = retrodb.create(folder / "db", tokenizer=str(made_tokenizer), encoder="hashing:32")
    with pytest.MonkeyPatch.context() as patch:
        for module in ("shard", "tokenize"):
            patch.setattr(f"retrodb.stages.ingest.{module}.MAX_SHARD_CHUNKS", 2048)
        patch.setattr("retrodb.stages.index.merge.choose_merges", lambda sizes: [])
        for first, end in ((0, 2800), (2800, 3200)):
            db.ingest([write_documents(folder / f"{first}.jsonl", documents(first, end))], source="s")
            db.embed()
            db.index(**({"factory": f"IVF{LISTS},SQ8"} if first == 0 else {}))
    db.filter(doc_ids=["d3", "d700"], reason="gone")
    return folder


@pytest.fixture
def copy(topical: Path) -> Callable[[str], Database]:
    def of_name(name: str) -> Database:
        shutil.copytree(topical / "db", topical / name)
        return retrodb.open(topical / name)

    return of_name


def entry_of(db: Database, table: str = "self") -> TableEntry:
    return db.view().snapshot.existing(TableEntry, table)


VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "as many ranges as lists": {"route_ranges": LISTS},
    "starved": {"k": 60, "spare_neighbours": 30, "recall": 0.3},
    "few documents": {"where": "doc_id in ('d1', 'd61', 'd500')"},
    "none": {"where": "doc_id = 'nobody'"},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_ranges_of_the_execution_change_no_byte(
    copy: Callable[[str], Database], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    for module in ("range_payloads", "range_scan"):
        monkeypatch.setattr(f"retrodb.stages.neighbours.{module}.EXCHANGED_ROWS", 300)
    expected, options = copy(f"{name}-1"), OPTIONS | VARIANTS[name]
    whole = expected.neighbours(list_ranges=1, **options)
    assert (whole.routing is None) == (name == "none"), "without true neighbours there is nothing to learn"
    for ranges in (2, 6, 40) if name == "plain" else (6,):
        db = copy(f"{name}-{ranges}")
        result = db.neighbours(list_ranges=ranges, **options)
        assert contents(db) == contents(expected)
        assert entry_of(db) == entry_of(expected)
        assert replace(result, ranges_per_row=1.0, exchanged_bytes=0) == whole
        if ranges > 1 and name != "starved":
            assert 1 <= result.ranges_per_row <= ranges


def test_workers_and_a_kill_change_no_byte(
    copy: Callable[[str], Database], topical: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = copy("workers-1")
    expected.neighbours(list_ranges=1, **OPTIONS)
    copy("workers-2")
    retrodb.open(topical / "workers-2", workers=2).neighbours(list_ranges=6, **OPTIONS)
    assert contents(retrodb.open(topical / "workers-2")) == contents(expected)
    killed = copy("killed")
    for place, function in (
        (command, "measured_recall"),
        (range_join, "run_route_task"),
        (range_join, "run_remote_task"),
    ):

        def interrupted(*args: Any, **options: Any) -> Any:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(place, function, interrupted)
            with pytest.raises(KeyboardInterrupt):
                killed.neighbours(list_ranges=1 if place is command else 6, **OPTIONS)
    killed.neighbours(list_ranges=6, **OPTIONS)
    assert contents(killed) == contents(expected)


def test_a_routed_table_reads_fewer_ranges_at_the_same_recall(copy: Callable[[str], Database]) -> None:
    db = copy("saves")
    plain = db.neighbours(list_ranges=ROUTES, **OPTIONS | {"route_ranges": 0, "table": "plain"})
    routed = db.neighbours(list_ranges=ROUTES, **OPTIONS)
    assert routed.routing is not None
    assert (plain.route_ranges, plain.routing, routed.route_ranges) == (0, None, ROUTES)
    assert routed.recall_reached is not None
    assert routed.recall_reached >= OPTIONS["recall"] - 0.02
    assert routed.ranges_per_row < plain.ranges_per_row
    assert routed.exchanged_bytes < plain.exchanged_bytes
    assert routed.routing.ranges < routed.routing.ranges_without
    assert routed.routing.scanned > 0
    # Ranges of the execution are made of routing ranges, so a row is sent to about as many as it reads.
    assert routed.ranges_per_row == pytest.approx(routed.routing.ranges, abs=0.7)
    assert db.neighbours(**OPTIONS) == replace(routed, ranges_per_row=1.0, exchanged_bytes=0), "it is current"
    assert recall(db, "self") > OPTIONS["recall"] - 0.02, "also on the rows that nothing was learned from"
    entry = entry_of(db)
    assert from_json(TableEntry, to_json(entry), where="entry") == entry
    other = db.neighbours(**OPTIONS | {"route_ranges": 4})
    assert other.snapshot > routed.snapshot, "another table"
    assert entry_of(db).params.route_ranges == 4


def test_a_plan_says_what_a_routing_saves(copy: Callable[[str], Database]) -> None:
    db = copy("dry")
    planned = db.neighbours(dry_run=True, **OPTIONS)
    made = db.neighbours(**OPTIONS)
    assert planned.routing == made.routing
    arguments = ["neighbours", str(db.path), "--table", "printed", "--k", "4", "--route-ranges", "8"]
    printed = CliRunner().invoke(cli, [*arguments, "--dry-run"])
    assert printed.exit_code == 0, printed.output
    assert "ranges without" in printed.output
    line = json.loads(CliRunner().invoke(cli, [*arguments, "--json"]).stdout)
    assert line["route_ranges"] == 8
    assert set(line["routing"]) == {"ranges", "scanned", "ranges_without", "scanned_without"}


def recall(db: Database, table: str, k: int = 4) -> float:
    """Of all rows of a table, against an exact one that is made here."""
    if "truth" not in db.view().snapshot.names(TableEntry):
        db.neighbours(table="truth", k=k, exact=True)
    rows, truth = db.neighbour_table("truth").rows(), db.neighbour_table("truth")
    true = truth.read(rows)[1][:, :k]
    return float((db.neighbour_table(table).read(rows)[1][:, :k] <= true[:, -1:]).mean())


def test_a_repair_keeps_the_routing_and_the_recall(
    copy: Callable[[str], Database], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    db = copy("repaired")
    db.neighbours(**OPTIONS)
    before = entry_of(db)
    db.ingest([write_documents(tmp_path / "more.jsonl", documents(3200, 3600))], source="more")
    db.filter(doc_ids=[f"d{number}" for number in range(0, 3200, 7)], reason="gone")
    db.embed()
    db.index()
    recomputed: list[tuple[np.ndarray, np.ndarray]] = []
    from retrodb.stages.neighbours import repair_task

    recompute = repair_task._recompute

    def noted(state: Any, rows: Any, *rest: Any) -> Any:
        nearest = recompute(state, rows, *rest)
        recomputed.append((rows, nearest[0].copy()))
        return nearest

    with monkeypatch.context() as patch:
        patch.setattr(repair_task, "_recompute", noted)
        [result] = db.repair_neighbours()
    assert result.num_improved > 0
    assert 0 < result.num_recomputed < result.num_rows
    entry = entry_of(db)
    assert (entry.routing, entry.nprobe, entry.route_ranges) == (before.routing, before.nprobe, ROUTES)
    # Recomputed rows are those of a table that is computed with the same routing now.
    monkeypatch.setattr(
        command, "_choose_point", lambda *args: command.OperatingPoint(entry.nprobe, 0.9, entry.routing)
    )
    db.neighbours(table="same rule", **OPTIONS)
    for rows, ids in recomputed:
        np.testing.assert_array_equal(db.neighbour_table("same rule").stored(rows)[0], ids)
    assert recall(db, "self") == pytest.approx(recall(db, "same rule"), abs=0.005)
    monkeypatch.undo()
    db.neighbours(table="rebuilt", **OPTIONS)
    assert recall(db, "self") > recall(db, "rebuilt") - 0.03, "whose routing was learned on another sample"


def test_a_repair_looks_at_the_rows_that_find_a_new_chunk_in_their_routed_lists(
    copy: Callable[[str], Database], tmp_path: Path
) -> None:
    db = copy("looks")
    db.neighbours(**OPTIONS)
    db.ingest([write_documents(tmp_path / "more.jsonl", documents(3200, 3220))], source="more")
    db.embed()
    db.index()
    view = db.view()
    state = planned_state(view.storage, PlannedSnapshot.of(view), "self")
    num_found = num_seen = num_rows = 0
    for record in view.chunks.ranges:
        span = record.span
        rows = np.intersect1d(span.first_chunk + np.flatnonzero(view.embeddable_mask(*span)), state.table.rows())
        if len(rows):
            found, _ = find_new_neighbours(state, rows, rows, span, 1).below(
                rows, *list_bounds(*state.table.stored(rows))
            )
            assert np.isin(found[found >= 0], state.new_ids).all()
            finds_new, is_seen = (found >= 0).any(axis=1), state.near(rows, span)
            num_found, num_seen = num_found + finds_new.sum(), num_seen + (finds_new & is_seen).sum()
            num_rows += len(rows)
    assert 0 < num_found < num_rows / 2
    assert num_seen > 0.97 * num_found, "the list of a row is hardly ever far from a chunk whose list it reads"


def test_what_makes_no_sense_is_refused(copy: Callable[[str], Database], topical: Path, made_tokenizer: Path) -> None:
    db = copy("refused")
    for wrong, message in (
        ({"route_ranges": 1}, "at least 2"),
        ({"route_ranges": -3}, "at least 2"),
        ({"route_ranges": LISTS + 1}, f"only {LISTS} lists.*at most {LISTS}"),
        ({"route_ranges": 4, "exact": True}, "--exact"),
    ):
        with pytest.raises(UsageError, match=message):
            db.neighbours(**wrong)
    flat = retrodb.create(topical / "flat", tokenizer=str(made_tokenizer), encoder="hashing:16")
    flat.ingest([write_documents(topical / "flat.jsonl", documents(0, 20))], source="s")
    flat.embed()
    flat.index()
    with pytest.raises(UsageError, match="1 list, which cannot be split"):
        flat.neighbours(route_ranges=2)
    answer = CliRunner().invoke(cli, ["neighbours", str(db.path), "--repair", "--route-ranges", "4"])
    assert answer.exit_code == 2
    assert "--repair keeps the parameters of the table" in answer.output


@pytest.mark.parametrize("num_ranges", [1, 2, 6, 16, 40, 64, 100])
def test_ranges_of_the_execution_are_made_of_routing_ranges(num_ranges: int) -> None:
    sizes = np.random.default_rng(num_ranges).integers(0, 100, LISTS)
    sizes[20:24] = 2000  # a routing range that is too large is cut
    bounds = range_bounds(sizes, num_ranges, ROUTES)
    assert bounds[0] == 0
    assert bounds[-1] == LISTS
    assert (np.diff(bounds) > 0).all()
    most = max(2 * sizes.sum() / num_ranges, 2 * sizes.max())
    assert max(sizes[first:end].sum() for first, end in pairwise(bounds)) <= most
    if num_ranges in (2, 6):
        inside = [bound for bound in bounds if bound % (LISTS // ROUTES)]
        assert [bound for bound in inside if not 20 < bound < 24] == []
