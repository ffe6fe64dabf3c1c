"""Every command on a tiny database: what it prints for people and for programs, and how it ends."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from retrodb import errors

from .conftest import Done, document, json_lines, ok, run

Fresh = Callable[[Path], Path]


def test_every_record_is_accounted_for(empty: Path, corpus: Path, fresh: Fresh, tmp_path: Path) -> None:
    database = fresh(empty)
    row = ok("ingest", database, corpus, "--source", "made", "--workers", 1, "--json").row
    assert (row["message_type"], row["num_read"], row["num_added"]) == ("ingest_result", 40, 40)
    changed = {**document(0), "text": "Another text altogether, and a longer one than nothing."}
    more = json_lines(tmp_path / "more.jsonl", changed, document(1), document(1), document(50), b"not json")
    done = run("ingest", database, more, "--source", "made", "--max-reject-rate", "50%", "--json")
    assert done.code == errors.EXIT_REJECTS
    counts = done.row
    names = ("num_added", "num_unchanged", "num_superseded", "num_duplicate", "num_held_out", "num_rejected")
    assert {name: counts[name] for name in names} == dict(zip(names, (1, 1, 1, 1, 0, 1), strict=True))
    assert counts["num_read"] == sum(counts[name] for name in names) == 5
    assert counts["num_rejects_by_reason"] == {"not-json": 1}
    assert (database / counts["rejects_path"]).is_file()
    assert counts["rejects_path"] in done.errors[0]["message"]


def test_ingest_says_what_it_skipped(built: Path, corpus: Path) -> None:
    row = ok("ingest", built, corpus, "--source", "made", "--dry-run", "--json").row
    assert (row["num_read"], row["num_skipped_inputs"]) == (0, 1)


def test_held_out_documents_are_kept_out(empty: Path, corpus: Path, fresh: Fresh) -> None:
    database = fresh(empty)
    row = ok("ingest", database, corpus, "--source", "made", "--holdout", "25%", "--workers", 1, "--json").row
    assert row["num_held_out"] > 0
    assert row["num_read"] == row["num_added"] + row["num_held_out"]
    stats = ok("stats", database, "--json").row
    assert stats["num_documents"] == row["num_added"]
    assert [each["queries"] for each in stats["query_sets"]] == ["heldout"]


@pytest.mark.parametrize("fraction", ["-1%", "101%", "1.5", "half", "%"])
def test_an_invalid_fraction_is_refused(fraction: str, empty: Path, corpus: Path) -> None:
    done = run("ingest", empty, corpus, "--source", "made", "--holdout", fraction)
    assert done.code == errors.EXIT_USAGE
    assert "Write 0.5% or 0.005" in done.err


def test_dedup_reports_matching_texts(built: Path) -> None:
    shown = ok("dedup", built, "--name", "exam", "--report").out
    assert shown.startswith("exam: all documents were compared with it before")
    assert "exam/t0  and  made/d3: deleted\n  jaccard 1.000, containment 1.000" in shown
    assert "exam/t1  and  made/d4: kept" in shown
    assert "  item      The granite 3:0 is told of" in shown


def test_dedup_dry_run_changes_nothing(empty: Path, corpus: Path, testset: Path, fresh: Fresh) -> None:
    database = fresh(empty)
    ok("ingest", database, corpus, "--source", "made", "--workers", 1)
    before = ok("snapshots", database, "--json").rows
    shown = ok("dedup", database, "--against", testset, "--dry-run").out
    assert "the rule jaccard>=0.8 would delete 1 document" in shown
    assert "2 test items are contained in 2 documents with a containment of 0.5 or more" in shown
    assert ok("snapshots", database, "--json").rows == before
    assert run("dedup", database, "--against", testset, "--dry-run", "--report").code == errors.EXIT_USAGE


def test_dedup_takes_several_files_after_against(built: Path, testset: Path) -> None:
    row = ok("dedup", built, "--against", testset, testset, "--name", "twice", "--dry-run", "--json").row
    assert row["num_items"] == 6
    assert run("dedup", built, testset).code == errors.EXIT_USAGE


def test_a_rule_without_a_new_test_set_is_refused_and_not_ignored(built: Path) -> None:
    done = run("dedup", built, "--rule", "containment>=0.5")
    assert done.code == errors.EXIT_USAGE
    assert "--rule needs the files of a new test set" in done.err


def test_testsets_lists_what_was_removed(built: Path) -> None:
    row = ok("testsets", built, "--json").row
    assert row["message_type"] == "test_set_info"
    assert (row["testset"], row["num_items"], row["num_removed_documents"], row["num_unscreened_shards"]) == (
        "exam",
        3,
        1,
        0,
    )
    assert row["num_removed_chunks"] > 0


def test_embed_and_index_have_nothing_left_to_do(built: Path) -> None:
    assert ok("embed", built, "--json").row["num_chunks"] == 0
    row = ok("index", built, "--dry-run", "--json").row
    assert (row["num_vectors"], row["factory"], row["dry_run"]) == (0, "Flat", True)


def test_search_shows_place_text_and_continuation(built: Path) -> None:
    query = "The violin 12:0 is told of in part 0 here."
    rows = ok("search", built, query, "--k", 2, "--json").rows
    assert [row["message_type"] for row in rows] == ["search_hit"] * 2
    assert rows[0]["score"] >= rows[1]["score"]
    assert {"doc_id", "source", "position", "text", "continuation", "chunk_id"} <= rows[0].keys()
    shown = ok("search", built, query, "--k", 1).out
    assert f"made/{rows[0]['doc_id']}  chunk {rows[0]['chunk_id']} (position {rows[0]['position']})" in shown


def test_search_never_shows_what_was_removed(built: Path) -> None:
    rows = ok("search", built, str(document(3)["text"])[:60], "--k", 1000, "--json").rows
    assert rows
    assert "d3" not in {row["doc_id"] for row in rows}


def test_words_shared_with_the_query_are_highlighted(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("click.utils.should_strip_ansi", lambda stream, color=None: color is False)
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[33mviolin\x1b[0m" in ok("search", built, "violin").out
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in ok("search", built, "violin").out


def test_stats_counts_live_and_deleted(built: Path) -> None:
    row = ok("stats", built, "--json").row
    assert (row["num_documents"], row["num_live_documents"]) == (40, 39)
    assert row["num_chunks"] - row["num_live_chunks"] == row["num_deleted_chunks_by_reason"]["leak:exam"]
    [space] = row["spaces"]
    assert (space["encoder"], space["dimension"], space["coverage"], space["index"]) == ("hashing:32", 32, 1.0, "Flat")
    assert {table["table"]: table["num_rows"] for table in row["tables"]}.keys() == {"self", "exam"}
    assert sum(kind["size_bytes"] for kind in row["files"]) == row["size_bytes"]


def test_snapshots_are_listed_oldest_first(built: Path) -> None:
    rows = ok("snapshots", built, "--json").rows
    assert [row["snapshot"] for row in rows] == list(range(len(rows)))
    assert [row["command"] for row in rows][:3] == ["init", "ingest", "dedup"]
    assert ok("stats", built, "--as-of", 0, "--json").row["num_documents"] == 0
    missing = run("stats", built, "--as-of", 999)
    assert missing.code == errors.EXIT_USAGE
    assert "retrodb snapshots" in missing.err


def test_check_finds_no_damage_in_an_intact_database(built: Path) -> None:
    for options in ([], ["--read-data"]):
        row = ok("check", built, *options, "--json").row
        assert row["damaged"] == []
        assert row["num_files"] > 10
    assert "no damage found" in ok("check", built).out


def test_check_names_every_damaged_file(built: Path, fresh: Fresh) -> None:
    database = fresh(built)
    [chunks] = (database / "chunks").iterdir()
    content = bytearray(chunks.read_bytes())
    content[len(content) // 2] ^= 1
    chunks.write_bytes(content)
    [vectors] = (database / "vectors" / "default").iterdir()
    vectors.unlink()
    quick = run("check", database)
    assert quick.code == errors.EXIT_DAMAGE
    assert vectors.name in quick.out
    assert chunks.name not in quick.out
    whole = run("check", database, "--read-data", "--json")
    assert whole.code == errors.EXIT_DAMAGE
    assert {Path(each["path"]).name for each in whole.row["damaged"]} == {chunks.name, vectors.name}
    assert all(each["remedy"] for each in whole.row["damaged"])


def test_sql_reads_the_four_tables(built: Path) -> None:
    query = "select count(*) as n, count(*) filter (live) as live from {}"
    assert ok("sql", built, query.format("documents"), "--json").row == {"message_type": "sql_row", "n": 40, "live": 39}
    assert ok("sql", built, "select count(*) as n from shards", "--json").row["n"] == 1
    assert ok("sql", built, "select count(*) as n from files where kind = 'chunks'", "--json").row["n"] == 1
    assert "text" in ok("sql", built, "select chunk_id, text from chunks order by chunk_id limit 1").out
    refused = run("sql", built, "drop table documents")
    assert (refused.code, "not one SELECT" in refused.err) == (errors.EXIT_USAGE, True)


def test_export_writes_a_folder_and_dry_run_none(built: Path, tmp_path: Path) -> None:
    planned = ok("export", built, tmp_path / "out", "--dry-run", "--json").row
    assert not (tmp_path / "out").exists()
    written = ok("export", built, tmp_path / "out", "--json").row
    assert written["num_rows"] == planned["num_rows"] > 0
    assert any((tmp_path / "out").rglob("*.parquet"))
    assert run("export", built, tmp_path / "other", "--to", "nothing").code == errors.EXIT_USAGE


def test_validate_tells_whether_neighbours_help(built: Path) -> None:
    options = ["--steps", 2, "--batch-chunks", 8, "--max-train-chunks", 40, "--max-heldout-chunks", 10]
    row = ok("validate", built, *options, "--json").row
    assert row["report"]["bits_per_byte"].keys() == {"on", "shuffled", "random", "off", "without"}
    assert row["report"]["verdict"]
    assert "bits per byte" in ok("validate", built, *options).out


def test_init_twice_is_refused_and_leaves_nothing(built: Path, tokenizer: Path) -> None:
    before = set(built.rglob("*"))
    done = run("init", built, "--tokenizer", tokenizer)
    assert done.code == errors.EXIT_CONFLICT
    assert "a database exists here already" in done.err
    assert set(built.rglob("*")) == before


def test_groups_list_their_commands() -> None:
    for group, command in (("tokenizer", "train"), ("queries", "add")):
        assert command in ok(group, "--help").out


READING = ["stats", "snapshots", "testsets", "check"]


@pytest.mark.parametrize("command", [*READING, "embed", "index", "neighbours", "validate", "dedup"])
def test_a_path_without_database_is_refused_by_every_command(command: str, tmp_path: Path) -> None:
    done: Done = run(command, tmp_path / "none")
    assert done.code == errors.EXIT_NO_DATABASE
    assert "not a retrodb database. Create one with 'retrodb init', or check the path." in done.err
    assert not (tmp_path / "none").exists()


def test_init_dry_run_shows_what_would_be_fixed_and_writes_nothing(tmp_path: Path, tokenizer: Path) -> None:
    done = ok("init", tmp_path / "new", "--tokenizer", tokenizer, "--chunk-tokens", 32, "--dry-run", "--json")
    assert done.row["chunk_tokens"] == 32
    assert not (tmp_path / "new").exists()


def test_search_refuses_an_empty_text(built: Path) -> None:
    done = run("search", built, "granite", "  ")
    assert done.code == errors.EXIT_USAGE
    assert "query 2 is empty" in done.err
