"""`dedup --near-duplicates` and `exposure` as people and programs see them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from retrodb import errors

from .conftest import document, json_lines, ok, run

Fresh = Callable[[Path], Path]


def test_near_duplicates_are_counted_and_reported_side_by_side(empty: Path, fresh: Fresh, tmp_path: Path) -> None:
    database = fresh(empty)
    copy = {"id": "copy", "text": str(document(1)["text"]) + " And more."}
    ok("ingest", database, json_lines(tmp_path / "c.jsonl", document(1), document(2), copy), "--source", "made")
    row = ok("dedup", database, "--near-duplicates", "--dry-run", "--json").row
    assert (row["message_type"], row["num_clusters"], row["num_removed_documents"]) == ("near_duplicates_result", 1, 1)
    shown = ok("dedup", database, "--near-duplicates", "--keep", "longest", "--report").out
    assert "keeping one document per cluster deletes 1 document" in shown
    assert "made/d1: deleted as a duplicate of made/copy, jaccard 0." in shown


def test_minhash_says_what_it_is_expected_to_miss(built: Path, testset: Path) -> None:
    options = ("--method", "minhash", "--permutations", "128", "--bands", "9x13", "--name", "sketched", "--dry-run")
    row = ok("dedup", built, "--against", testset, *options, "--json").row
    assert 0.1 < row["expected_miss"] < 0.6
    assert "MinHash compared only candidates" in ok("dedup", built, "--against", testset, *options).out


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        (["--near-duplicates", "--rule", "jaccard>=0.5"], "--rule needs the files of a new test set"),
        (["--near-duplicates", "--name", "exam"], "--name needs a test set"),
        (["--keep", "first"], "--keep needs --near-duplicates"),
        (["--bands", "9x13"], "--bands needs --method minhash"),
    ],
)
def test_options_that_would_not_be_used_are_refused(built: Path, options: list[str], fault: str) -> None:
    done = run("dedup", built, *options)
    assert (done.code, fault in done.err) == (errors.EXIT_USAGE, True)


def test_exposure_lists_the_rows_and_a_summary(built: Path) -> None:
    row = ok("exposure", built, "--testset", "exam", "--table", "exam", "--consumed-samples", 2, "--json").row
    assert row["message_type"] == "exposure_result"
    assert row["num_exposed_seen"] + row["num_exposed_unseen"] == len(row["exposed"]) > 0
    assert {"row", "is_seen", "own_items", "neighbour_items", "continuation_items", "chunks"} <= row["exposed"][
        0
    ].keys()
    shown = ok("exposure", built, "--testset", "exam", "--table", "exam", "--consumed-samples", 2).out
    assert f"exposed; {row['num_exposed_seen']} of the 2 seen rows" in shown
    assert run("exposure", built, "--testset", "none").code == errors.EXIT_USAGE
