"""Test sets held against a database: what goes, what is remembered, and what later versions change."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from made_documents import made_text, write_documents

import retrodb
from retrodb.database import Database
from retrodb.dedup.shingles import words_of
from retrodb.errors import UsageError

Make = Callable[..., Database]


def grams(text: str, ngram: int = 13) -> set[tuple[str, ...]]:
    words = words_of(text)
    return {tuple(words[i : i + ngram]) for i in range(len(words) - ngram + 1)}


def corrupted(rng: random.Random, text: str, count: int) -> str:
    words = text.split()
    for position in rng.sample(range(len(words)), count):
        words[position] = f"changed{rng.randrange(10**6)}"
    return " ".join(words)


def live_documents(database: Database) -> set[str]:
    view = database.view()
    ids = np.flatnonzero(view.chunks.live_mask(0, view.chunks.end))
    return {document["doc_id"] for document in view.chunks.documents(ids) if document}


def deleted(database: Database) -> np.ndarray:
    view = database.view()
    return np.flatnonzero(~view.chunks.live_mask(0, view.chunks.end))


def windows(database: Database) -> list[str]:
    """Every [chunk, continuation] that may be returned."""
    view = database.view()
    ids = np.flatnonzero(view.chunks.live_mask(0, view.chunks.end))
    texts = zip(view.chunks.texts(ids), view.chunks.texts(view.chunks.continuation(ids)), strict=True)
    return [chunk + continuation for chunk, continuation in texts]


def split_ingest(database: Database, folder: Path, documents: Mapping[str, str]) -> None:
    """Two shards: the same documents in two ingests."""
    items = list(documents.items())
    for number, part in enumerate((items[::2], items[1::2])):
        database.ingest([write_documents(folder / f"part{number}.jsonl", dict(part))], source=f"s{number}")


def near_the_threshold(num_documents: int) -> tuple[dict[str, str], dict[str, str]]:
    """Test items, and documents that are copies of them with ever more words changed."""
    rng = random.Random(0)
    items = {f"t{i}": made_text(i, 300) for i in range(num_documents)}
    changes = [i * 7 // num_documents for i in range(num_documents)]  # similarities from 1 down to about 0.55
    copies = {f"d{i}": corrupted(rng, items[f"t{i}"], changes[i]) for i in range(num_documents)}
    return items, copies


@pytest.mark.parametrize("num_items", [60, pytest.param(1500, marks=pytest.mark.soak)])
@pytest.mark.parametrize("method", ["exact", "minhash"])
def test_exactly_the_documents_over_the_threshold_go(
    make_database: Make, tmp_path: Path, method: str, num_items: int
) -> None:
    items, copies = near_the_threshold(num_items)
    database = make_database({})
    split_ingest(database, tmp_path, {**copies, "other": made_text(9999, 200)})
    sets = [(grams(items[f"t{i}"]), grams(copies[f"d{i}"])) for i in range(num_items)]
    jaccard = {f"d{i}": Fraction(len(a & b), len(a | b)) for i, (a, b) in enumerate(sets)}
    expected = {doc_id for doc_id, value in jaccard.items() if value >= Fraction(4, 5)}
    assert num_items / 4 < len(expected) < num_items * 3 / 4
    assert min(jaccard.values()) < Fraction(6, 10)
    [result] = database.dedup([write_documents(tmp_path / "exam.jsonl", items)], method=method, bands="32x4")
    assert live_documents(database) == {*copies, "other"} - expected
    assert (result.num_documents, result.num_removed_documents) == (num_items + 1, len(expected))
    reported = {hit.doc_id: hit for hit in database.leaks("exam")}
    assert {doc_id for doc_id, hit in reported.items() if hit.is_removed} == expected
    assert all(hit.jaccard == pytest.approx(float(jaccard[doc_id])) for doc_id, hit in reported.items())
    assert (result.expected_miss > 0) == (method == "minhash")


def test_a_dry_run_commits_nothing_and_tells_the_same(make_database: Make, tmp_path: Path) -> None:
    items, copies = near_the_threshold(12)
    database, file = make_database(copies), write_documents(tmp_path / "exam.jsonl", items)
    before = database.snapshots()
    [tried] = database.dedup([file], dry_run=True)
    assert database.snapshots() == before
    assert live_documents(database) == set(copies)
    [done] = database.dedup([file])
    names = ("num_documents", "num_hits", "num_removed_documents", "num_removed_chunks", "num_contained_items")
    assert [getattr(tried, name) for name in names] == [getattr(done, name) for name in names]
    assert done.num_removed_documents > 0


def test_later_documents_are_held_against_what_is_registered_before_embed_sees_them(
    make_database: Make, tmp_path: Path
) -> None:
    leak = made_text(1, 150)
    database = make_database({"a": made_text(2, 150)})
    database.dedup([write_documents(tmp_path / "exam.jsonl", {"t": leak})])
    database.ingest([write_documents(tmp_path / "later.jsonl", {"b": leak, "c": made_text(3, 150)})], source="later")
    assert live_documents(database) == {"a", "c"}
    assert database.testsets()[0].num_unscreened_shards == 0
    view = database.view()
    database.embed()
    wanted = view.embeddable_mask(0, view.chunks.end)
    documents = view.chunks.documents(np.flatnonzero(wanted))
    assert {document["doc_id"] for document in documents if document} == {"a", "c"}
    assert [hit.doc_id for hit in database.leaks()] == ["b"]


def test_a_new_test_set_is_obeyed_at_once_by_search_and_tables(make_database: Make, tmp_path: Path) -> None:
    documents = {str(i): made_text(i, 150) for i in range(8)}
    database = make_database(documents)
    database.embed()
    database.index()
    database.neighbours(k=2)
    deleted_chunks = {hit.chunk_id for hit in database.search([documents["3"]], k=50)[0] if hit.doc_id == "3"}
    assert deleted_chunks
    database.dedup([write_documents(tmp_path / "exam.jsonl", {"t": documents["3"]})])
    assert not any(hit.doc_id == "3" for hit in database.search([documents["3"]], k=50)[0])
    table = database.neighbour_table()
    ids, _ = table.read(table.rows())
    assert not deleted_chunks & set(ids.ravel().tolist())


def test_another_rule_screens_again_and_gives_back_what_only_the_former_removed(
    make_database: Make, tmp_path: Path
) -> None:
    question = made_text(1, 30)
    page = f"{made_text(2, 300)} {question} {made_text(3, 300)}"
    database, file = (
        make_database({"page": page, "copy": question}),
        write_documents(tmp_path / "exam.jsonl", {"t": question}),
    )
    assert [database.dedup([file], rule="containment>=0.5")[0].num_removed_documents, live_documents(database)] == [
        2,
        set(),
    ]
    [result] = database.dedup([file])
    assert (result.num_documents, result.num_removed_documents, result.num_contained_documents) == (2, 1, 2)
    assert live_documents(database) == {"page"}
    assert sorted((hit.doc_id, hit.is_removed) for hit in database.leaks()) == [("copy", True), ("page", False)]
    database.dedup([file], rule="containment>=0.5")
    assert live_documents(database) == set()
    assert len(database.leaks()) == 2
    assert database.dedup([file], rule="containment>=0.5")[0].num_documents == 0  # nothing is left to screen
    assert database.check(read_data=True).damaged == ()


def test_documents_under_another_tombstone_are_held_against_the_test_set_too(
    make_database: Make, tmp_path: Path
) -> None:
    text = made_text(1, 150)
    database = make_database({"a": text, "b": made_text(2, 150)})
    changed = write_documents(tmp_path / "changed.jsonl", {"a": made_text(5, 150), "b": made_text(2, 150)})
    database.ingest([changed], source="made")
    [result] = database.dedup([write_documents(tmp_path / "exam.jsonl", {"t": text})])
    assert (result.num_documents, result.num_removed_documents) == (3, 1)
    masks = database.view().chunks.tombstones.deleted_by_reason(0, database.view().chunks.end)
    assert (masks["leak:exam"] == masks["superseded"]).all()


def test_short_texts_are_reported_and_removed_only_when_asked(make_database: Make, tmp_path: Path) -> None:
    database = make_database({"same": "Who wrote, Candide", "longer": "Who wrote Candide and when"})
    file = write_documents(tmp_path / "exam.jsonl", {"t": "who wrote candide?"})
    [result] = database.dedup([file])
    assert (result.num_short_matches, result.num_removed_documents, result.num_hits) == (1, 0, 0)
    [hit] = database.leaks()
    assert (hit.doc_id, hit.num_shared_shingles, hit.jaccard, hit.is_removed) == ("same", 0, 1.0, False)
    assert (hit.item_text, hit.document_excerpt) == ("who wrote candide?", "Who wrote, Candide")
    database.dedup([file], short_texts="remove")
    assert live_documents(database) == {"longer"}
    assert [hit.is_removed for hit in database.leaks()] == [True]


def test_boilerplate_is_measured_over_all_that_was_ever_scanned(make_database: Make, tmp_path: Path) -> None:
    licence = made_text(0, 40)
    documents = {str(i): f"{licence} {made_text(i + 1, 60)}" for i in range(9)}
    database = make_database({**documents, "own": made_text(77, 60)})
    file = write_documents(tmp_path / "exam.jsonl", {"t": f"{licence} {made_text(77, 60)}"})
    options = {"rule": "containment>=0.25", "max_document_frequency": 0.5}
    assert database.dedup([file], rule="containment>=0.25", dry_run=True)[0].num_removed_documents == 10
    assert database.dedup([file], **options)[0].num_removed_documents == 1
    # Of this ingest alone every shingle is in half of the documents or more; of the whole only the licence is.
    later = {"leak": made_text(77, 60), "more": f"{licence} {made_text(50, 60)}"}
    database.ingest([write_documents(tmp_path / "later.jsonl", later)], source="later")
    assert "leak" not in live_documents(database)
    assert "more" in live_documents(database)


def test_key_and_value_meet_as_two_words(made_tokenizer: Path, tmp_path: Path) -> None:
    question, answer = made_text(1, 20), made_text(2, 20)
    database = retrodb.create(tmp_path / "db", tokenizer=str(made_tokenizer), encoder="hashing:32")
    (tmp_path / "qa.jsonl").write_text(f'{{"id": "a", "q": "{question}", "a": "{answer}"}}\n')
    database.ingest([tmp_path / "qa.jsonl"], source="qa", key_field="q", value_field="a")
    [result] = database.dedup([write_documents(tmp_path / "exam.jsonl", {"t": f"{question} {answer}"})])
    assert [hit.jaccard for hit in database.leaks()] == [1.0]
    assert result.num_removed_documents == 1


@pytest.mark.parametrize("seed", range(3))
def test_at_chunk_level_no_ngram_of_a_leaked_item_is_in_anything_returned(
    made_tokenizer: Path, tmp_path: Path, seed: int
) -> None:
    rng = random.Random(seed)
    database = retrodb.create(tmp_path / "db", tokenizer=str(made_tokenizer), encoder="hashing:32", chunk_tokens=7)
    items = {f"t{i}": made_text(100 + i, 30) for i in range(4)}
    pages = {f"page{i}": planted(rng, i, list(items.values())) for i in range(12)}
    # Five words of an item, but the last one has an ending, or the first a beginning: no document has the 5-gram, and
    # where a chunk is cut just there, a chunk has.
    for cut in range(14):
        padding, words = made_text(500 + cut, 60).split(), items[f"t{cut % 4}"].split()[8:13]
        pages[f"tail{cut}"] = " ".join([*padding[:cut], *words]) + "dor " + " ".join(padding)
        pages[f"head{cut}"] = " ".join([*padding[:cut], "lo" + " ".join(words), *padding])
    pages |= {f"whole{i}": item for i, item in enumerate(items.values())}
    split_ingest(database, tmp_path, pages)
    [result] = database.dedup(
        [write_documents(tmp_path / "exam.jsonl", items)], rule="containment>=0.9", level="chunk", ngram=5
    )
    leaked = {hit.item for hit in database.leaks() if hit.containment >= 0.9}
    assert leaked
    forbidden = set().union(*(grams(items[item], 5) for item in leaked))
    cleaned = {document["doc_id"] for document in database.view().chunks.documents(deleted(database)) if document}
    assert any(name.startswith(("tail", "head")) and not grams(pages[name], 5) & forbidden for name in cleaned)
    assert not any(grams(text, 5) & forbidden for text in windows(database))
    assert all(hit.is_removed == (hit.item in leaked) for hit in database.leaks())
    total = database.view().chunks.end
    assert 0 < result.num_removed_chunks < total
    assert len(windows(database)) == total - result.num_removed_chunks


def planted(rng: random.Random, number: int, items: list[str]) -> str:
    """A page with whole items, and parts of others that are below any threshold."""
    words = made_text(number, 150).split()
    for _ in range(rng.randrange(3)):
        words_of_item = rng.choice(items).split()
        part = words_of_item if rng.random() < 0.5 else words_of_item[rng.randrange(20) :][: rng.randrange(5, 9)]
        position = rng.randrange(len(words))
        words[position:position] = part
    return " ".join(words)


def test_an_item_that_leaks_in_a_later_document_is_taken_out_of_earlier_ones_too(
    make_database: Make, tmp_path: Path
) -> None:
    item = made_text(1, 60)
    part = " ".join(item.split()[:20])
    database = make_database({"part": f"{made_text(2, 200)} {part} {made_text(3, 200)}"})
    options = {"rule": "containment>=0.9", "level": "chunk"}
    assert database.dedup([write_documents(tmp_path / "exam.jsonl", {"t": item})], **options)[0].num_removed_chunks == 0
    assert any(grams(text) & grams(item) for text in windows(database))
    database.ingest([write_documents(tmp_path / "later.jsonl", {"whole": item})], source="later")
    assert not any(grams(text) & grams(item) for text in windows(database))
    assert live_documents(database) == {"part"}
    assert sorted((hit.doc_id, hit.is_removed) for hit in database.leaks()) == [("part", True), ("whole", True)]


def test_items_with_one_id_are_told_apart(make_database: Make, tmp_path: Path) -> None:
    texts = [made_text(1, 60), made_text(2, 60)]
    database = make_database({"a": texts[0], "b": texts[1]})
    files = [write_documents(tmp_path / f"{i}.jsonl", {"t": text}) for i, text in enumerate(texts)]
    database.dedup(files, name="exam")
    assert {(hit.doc_id, hit.item, hit.item_text) for hit in database.leaks()} == {
        ("a", "t", texts[0]),
        ("b", "t#2", texts[1]),
    }


@pytest.mark.parametrize(
    "options",
    [
        {"method": "guess"},
        {"bands": "64x8"},
        {"method": "minhash", "rule": "containment>=0.5"},
        {"max_document_frequency": 0.1},
        {"level": "word"},
        {"short_texts": "keep"},
        {"ngram": 0},
    ],
)
def test_options_that_cannot_be_meant_are_refused(make_database: Make, tmp_path: Path, options: dict[str, str]) -> None:
    database = make_database({})
    with pytest.raises(UsageError):
        database.dedup([write_documents(tmp_path / "exam.jsonl", {"t": "text"})], **options)
    with pytest.raises(UsageError, match="no test set"):
        database.dedup(name="none")
