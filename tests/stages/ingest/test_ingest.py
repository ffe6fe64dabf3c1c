"""Ingest equals a dictionary: whatever is added, changed, taken away, mirrored, held out or tried."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrodb.config import IngestParams
from retrodb.errors import ConflictError, InputError, TooManyRejects, UsageError
from retrodb.format.parquet import read_table
from retrodb.stages import transaction
from retrodb.stages.context import Context
from retrodb.stages.ingest import plan
from retrodb.stages.ingest.command import run_ingest

from .ingest_model import documents, held_out_documents, ingest, new_database, write_json_lines

TEXTS = {f"d{n}": f"Document {n} holds words, and their continuations. " * (n % 5 + 1) for n in range(40)}


@pytest.fixture(autouse=True)
def _no_wait_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Durability is tested in tests/store; here it would be most of the time."""
    monkeypatch.setattr("os.fsync", lambda _: None)


@pytest.fixture
def context(tmp_path: Path) -> Context:
    return new_database(tmp_path / "db")


def in_source(texts: dict[str, str], source: str = "s") -> dict[tuple[str, str], str]:
    return {(source, key): text for key, text in texts.items()}


versions = st.dictionaries(
    st.sampled_from("abcdefgh"), st.sampled_from(["one", "two words", "three 数据库 words " * 9])
)
steps = st.tuples(versions, st.sampled_from(["add", "mirror"]), st.sampled_from(["x", "y"]))


@settings(max_examples=10, deadline=None)
@given(history=st.lists(steps, min_size=1, max_size=6))
def test_any_history_equals_a_dictionary(history: list[tuple[dict[str, str], str, str]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        context = new_database(Path(folder) / "db")
        expected: dict[tuple[str, str], str] = {}
        for version, how, source in history:
            old = {key for key in expected if key[0] == source}
            new = in_source(version, source)
            changed = {key for key in old & new.keys() if expected[key] != new[key]}
            missing = old - new.keys() if how == "mirror" else set()
            file = write_json_lines(Path(folder) / "input.jsonl", version)
            result = ingest(context, file, source=source, mirror=how == "mirror")
            if not result.num_skipped_inputs:
                assert result.num_added == len(new.keys() - old)
                assert result.num_unchanged == len(old & new.keys()) - len(changed)
            assert result.num_superseded == len(changed)
            assert result.num_removed == len(missing)
            expected = {key: text for key, text in {**expected, **new}.items() if key not in missing}
            assert documents(context) == expected
        before = context.view().snapshot.number
        assert ingest(context, file, source=source, mirror=how == "mirror").snapshot == before


def test_file_ingested_whole_is_skipped_unparsed(
    context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_json_lines(tmp_path / "a.jsonl", TEXTS)
    first = ingest(context, file)
    monkeypatch.setattr(plan, "read_files", lambda *_: pytest.fail("parsed again"))
    again = ingest(context, file)
    assert (again.num_read, again.num_skipped_inputs, again.snapshot) == (0, 1, first.snapshot)


def test_file_under_another_mapping_is_another_input(context: Context, tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"id": "1", "text": "a text", "title": "a title"}\n')
    ingest(context, file)
    assert ingest(context, file, text_field="title", change_options=True).num_superseded == 1
    assert documents(context) == {("s", "1"): "a title"}


def test_going_back_to_an_older_version_of_a_file_is_an_ingest(context: Context, tmp_path: Path) -> None:
    old, new = (
        write_json_lines(tmp_path / "old.jsonl", {"a": "old"}),
        write_json_lines(tmp_path / "new.jsonl", {"a": "new"}),
    )
    other = write_json_lines(tmp_path / "other.jsonl", {"b": "other"})
    ingest(context, old, other)
    assert ingest(context, new, other).num_skipped_inputs == 1
    assert ingest(context, new, other).num_skipped_inputs == 2
    assert ingest(context, old).num_superseded == 1
    assert documents(context) == {("s", "a"): "old", ("s", "b"): "other"}


def test_first_of_several_records_with_one_id_counts(context: Context, tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text("".join(json.dumps({"id": "x", "text": text}) + "\n" for text in ("first", "second", "first")))
    result = ingest(context, file)
    assert (result.num_added, result.num_duplicate) == (1, 2)
    assert documents(context) == {("s", "x"): "first"}


def test_documents_without_an_id_are_known_by_their_content(context: Context, tmp_path: Path) -> None:
    one, two = tmp_path / "1.jsonl", tmp_path / "2.jsonl"
    one.write_text('{"text": "same"}\n{"text": "same"}\n{"text": "other"}\n')
    two.write_text('{"text": "other"}\n{"text": "third"}\n')
    first, second = ingest(context, one), ingest(context, two)
    assert (first.num_added, first.num_duplicate) == (2, 1)
    assert (second.num_added, second.num_unchanged) == (1, 1)
    assert sorted(documents(context).values()) == ["other", "same", "third"]


def test_value_of_a_key_follows_whole_as_its_continuation(context: Context, tmp_path: Path) -> None:
    file, answer = tmp_path / "a.jsonl", "An answer of many words, " * 50
    file.write_text(json.dumps({"id": "q", "question": "What is it?", "answer": answer}) + "\n")
    ingest(context, file, key_field="question", value_field="answer")
    [text] = documents(context).values()
    assert text == "What is it?" + answer
    [row] = context.view().chunks.documents(np.array([0]))
    assert row is not None
    assert 0 < row["num_key_chunks"] < row["num_chunks"]
    file.write_text(json.dumps({"id": "q", "question": "What is it?", "answer": "Another."}) + "\n")
    assert ingest(context, file, key_field="question", value_field="answer").num_superseded == 1


def test_trial_then_full_equals_full(context: Context, tmp_path: Path) -> None:
    file = write_json_lines(tmp_path / "a.jsonl", TEXTS)
    trial = ingest(context, file, limit=7)
    assert (trial.num_read, trial.num_added) == (7, 7)
    again = ingest(context, file, limit=7)
    assert (again.num_unchanged, again.snapshot) == (7, trial.snapshot)
    full = ingest(context, file)
    assert (full.num_read, full.num_added, full.num_unchanged, full.num_skipped_inputs) == (40, 33, 7, 0)
    assert documents(context) == in_source(TEXTS)


def test_limit_counts_rejects_and_reaches_over_files(context: Context, tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / f"{name}.jsonl").write_text(f'{{"id": "{name}", "text": "text"}}\nno json\n')
    result = ingest(context, *(tmp_path / f"{name}.jsonl" for name in "abc"), limit=5, max_reject_rate=1.0)
    assert (result.num_read, result.num_added, result.num_rejected) == (5, 3, 2)


def test_held_out_documents_stay_held_out(context: Context, tmp_path: Path) -> None:
    file = write_json_lines(tmp_path / "a.jsonl", TEXTS)
    result = ingest(context, file, holdout=0.3)
    held_out = dict(held_out_documents(context))
    assert 0 < result.num_held_out == len(held_out) < 40
    assert held_out.keys() | documents(context).keys() == in_source(TEXTS).keys()
    assert not held_out.keys() & documents(context).keys()
    name = next(iter(held_out))[1]
    # Changed, and ingested without a holdout: still no part of the database.
    changed = ingest(context, write_json_lines(file, {**TEXTS, name: "new words"}))
    assert (changed.num_held_out, changed.num_unchanged, changed.num_superseded) == (1, 39, 0)
    assert dict(held_out_documents(context)) == {**held_out, ("s", name): "new words"}
    assert ("s", name) not in documents(context)


def test_mirror_removes_held_out_documents_too(context: Context, tmp_path: Path) -> None:
    file = write_json_lines(tmp_path / "a.jsonl", TEXTS)
    ingest(context, file, holdout=0.3)
    held_out = dict(held_out_documents(context))
    kept = {key: text for key, text in TEXTS.items() if ("s", key) != next(iter(held_out))}
    result = ingest(context, write_json_lines(file, kept), mirror=True, holdout=0.3)
    assert (result.num_removed, result.num_unchanged) == (1, 39)
    assert len(held_out_documents(context)) == len(held_out) - 1


def test_sources_hold_out_side_by_side(context: Context, tmp_path: Path) -> None:
    file = write_json_lines(tmp_path / "a.jsonl", TEXTS)
    for source in ("x", "y"):
        ingest(context, file, source=source, holdout=0.3)
    held_out = dict(held_out_documents(context))
    assert {source for source, _ in held_out} == {"x", "y"}
    everything = {**in_source(TEXTS, "x"), **in_source(TEXTS, "y")}
    assert {**documents(context), **held_out} == everything
    # Mirroring one source leaves the other's alone.
    ingest(context, write_json_lines(file, {"d0": TEXTS["d0"]}), source="x", mirror=True)
    assert {key for key in dict(held_out_documents(context)) if key[0] == "y"} == {
        key for key in held_out if key[0] == "y"
    }


def test_document_longer_than_a_shard_is_refused_with_a_remedy(
    context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("retrodb.stages.ingest.shard.MAX_SHARD_CHUNKS", 30)
    monkeypatch.setattr("retrodb.stages.ingest.tokenize.MAX_SHARD_CHUNKS", 30)
    file = write_json_lines(tmp_path / "a.jsonl", TEXTS)
    ingest(context, file)  # together longer than a shard: several shards
    assert len(context.view().shards) > 1
    assert documents(context) == in_source(TEXTS)
    with pytest.raises(InputError, match=r"'long' is longer than 30 chunks\. .*--oversize split"):
        ingest(context, write_json_lines(file, {"long": "words " * 400}))


def test_oversized_document_is_split(context: Context, tmp_path: Path) -> None:
    text = "words " * 400
    result = ingest(
        context, write_json_lines(tmp_path / "a.jsonl", {"x": text}), max_document_chars=1000, oversize="split"
    )
    assert (result.num_read, result.num_added) == (3, 3)
    assert "".join(documents(context).values()) == text


def test_too_many_rejects_commit_nothing(context: Context, tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"id": "1", "text": "good"}\n{"id": "2"}\nno json\n')
    with pytest.raises(TooManyRejects, match=r"2 of 3 records .*1 no-text-field, 1 not-json.*--max-reject-rate"):
        ingest(context, file, max_reject_rate=0.5)
    assert context.view().snapshot.number == 0
    result = ingest(context, file, max_reject_rate=0.7)
    assert result.num_rejects_by_reason == {"no-text-field": 1, "not-json": 1}
    assert result.rejects_path is not None
    rows = read_table(context.storage.local(result.rejects_path)).to_pylist()
    assert [(row["path"], row["reason"]) for row in rows] == [(str(file), "no-text-field"), (str(file), "not-json")]
    assert rows[1]["excerpt"] == "no json"
    assert "byte 39" in rows[1]["place"] or rows[1]["place"].startswith("byte ")


def test_dry_run_commits_nothing_and_counts_everything(context: Context, tmp_path: Path) -> None:
    file = write_json_lines(tmp_path / "a.jsonl", TEXTS)
    dry = ingest(context, file, dry_run=True)
    assert (dry.num_added, dry.dry_run, context.view().snapshot.number) == (40, True, 0)
    assert ingest(context, file).num_added == 40


def test_spool_is_gone_after_the_commit(context: Context, tmp_path: Path) -> None:
    ingest(context, write_json_lines(tmp_path / "a.jsonl", TEXTS))
    assert not [path for path in context.storage.list("runs") if "/spool/" in path]


def test_ingest_that_another_one_overtook_plans_again(
    context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (
        write_json_lines(tmp_path / "1.jsonl", {"a": "one"}),
        write_json_lines(tmp_path / "2.jsonl", {"a": "two"}),
    )
    overtake(monkeypatch, lambda: run_ingest(context, [str(second)], IngestParams("s")))
    with pytest.raises(ConflictError, match="source/s"):
        ingest(context, first)
    assert documents(context) == {("s", "a"): "two"}
    assert ingest(context, first).num_superseded == 1


def test_ingest_of_another_source_is_no_conflict(
    context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_json_lines(tmp_path / "1.jsonl", {"a": "one"})
    overtake(monkeypatch, lambda: run_ingest(context, [str(file)], IngestParams("other")))
    run_ingest(context, [str(file)], IngestParams("s"))
    assert documents(context) == {("s", "a"): "one", ("other", "a"): "one"}


def overtake(monkeypatch: pytest.MonkeyPatch, other: Callable[[], object]) -> None:
    """Let another ingest commit just before the next one does."""
    commit = transaction.commit

    def late(*arguments: object) -> object:
        monkeypatch.setattr(transaction, "commit", commit)
        other()
        return commit(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(transaction, "commit", late)


@pytest.mark.parametrize(
    "params",
    [
        {"source": "a/b"},
        {"source": ""},
        {"holdout": 1.0},
        {"key_field": "q"},
        {"mirror": True, "limit": 3},
        {"oversize": "spilt"},
        {"front_matter": "yaml"},
    ],
)
def test_options_that_cannot_be_meant_are_refused(context: Context, tmp_path: Path, params: dict[str, object]) -> None:
    file = write_json_lines(tmp_path / "a.jsonl", TEXTS)
    with pytest.raises(UsageError):
        ingest(context, file, **params)  # type: ignore[arg-type]
