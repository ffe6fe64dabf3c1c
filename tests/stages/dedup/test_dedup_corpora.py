"""What is known of the real corpora, through the whole stage."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from real_corpora import DATA, unpack

import retrodb
from retrodb.database import Database
from retrodb.dedup.shingles import words_of
from retrodb.stages.dedup.clusters import read_pairs
from retrodb.stages.dedup.leak_report import CONTAINED

pytestmark = [pytest.mark.corpora, pytest.mark.skipif(not DATA.exists(), reason="no corpora next to the repository")]


def new_database(folder: Path) -> Database:
    tokenizer = unpack("tokenizers.tar.zst", folder / "tokenizers") / "gpt2"
    return retrodb.create(folder / "db", tokenizer=str(tokenizer), encoder="hashing:32")


@pytest.fixture(scope="module")
def books(tmp_path_factory: pytest.TempPathFactory) -> Database:
    folder = tmp_path_factory.mktemp("books")
    database = new_database(folder)
    database.ingest([unpack("classic-books.md.tar.zst", folder / "text")], source="books")
    return database


def test_known_mmlu_rows_are_reported_and_those_over_the_rule_removed(books: Database) -> None:
    [tried] = books.dedup([DATA / "eval" / "mmlu-test.jsonl.zst"], dry_run=True)
    assert (tried.num_matched_items, tried.num_contained_items, tried.num_removed_documents) == (31, 20, 0)
    [result] = books.dedup([DATA / "eval" / "mmlu-test.jsonl.zst"], rule="containment>=0.5", level="chunk")
    hits = books.leaks("mmlu-test")
    assert len({hit.item for hit in hits}) == 31
    leaked = {hit.item for hit in hits if hit.containment >= CONTAINED}
    assert len(leaked) == 20
    assert {hit.item for hit in hits if hit.is_removed} == leaked
    view = books.view()
    assert 0 < result.num_removed_chunks < view.chunks.end / 100
    texts = {hit.item: hit.item_text for hit in hits if hit.item in leaked}
    forbidden = set().union(*map(grams, texts.values()))
    near = np.unique(
        [chunk + step for hit in hits if hit.is_removed for chunk in hit.touched_chunks for step in (-2, -1, 0, 1)]
    )
    near = near[view.chunks.is_live(near)]
    both = zip(view.chunks.texts(near), view.chunks.texts(view.chunks.continuation(near)), strict=True)
    assert not any(grams(chunk + continuation) & forbidden for chunk, continuation in both)


@pytest.mark.parametrize("name", ["gsm8k-test", "xquad-paragraphs", "pubmedqa", "wikitext2-test"])
def test_clean_test_sets_have_no_hit(books: Database, name: str) -> None:
    [result] = books.dedup([DATA / "eval" / f"{name}.jsonl.zst"])
    assert (result.num_documents, result.num_hits, result.num_short_matches, result.num_removed_documents) == (
        171,
        0,
        0,
        0,
    )
    assert books.leaks(name) == []


def test_near_duplicates_of_eips_and_ercs_are_those_of_brute_force(tmp_path: Path) -> None:
    database = new_database(tmp_path)
    text = unpack("eips-ercs.tar.zst", tmp_path / "text")
    folders = {name: next(text.rglob(name)) for name in ("EIPs", "ERCs")}
    for name, folder in folders.items():
        database.ingest([folder / "new"], source=name)
        database.near_duplicates()
    view = database.view()
    firsts = np.concatenate([r.first_chunk + view.chunks.layout(r).first_row for r in view.chunks.ranges])
    sets = {}
    for first, document in zip(firsts.tolist(), view.chunks.documents(firsts), strict=True):
        assert document is not None
        texts = view.chunks.texts(first + np.arange(document["num_chunks"]), deleted_too=True)
        sets[first] = document["source"], grams("".join(texts))
    [eips, ercs] = ({f: shingles for f, (source, shingles) in sets.items() if source == name} for name in folders)
    having = defaultdict(list)
    for first, shingles in eips.items():
        for gram in shingles:
            having[gram].append(first)
    shared = Counter((a, b) for b, shingles in ercs.items() for gram in shingles for a in having.get(gram, ()))
    expected = {(a, b) for (a, b), n in shared.items() if 5 * n >= 4 * (len(eips[a]) + len(ercs[b]) - n)}
    blocks = list(read_pairs(view))
    similar = {pair for pairs in blocks for pair in zip(pairs.first.tolist(), pairs.second.tolist(), strict=True)}
    contents = dict(zip(firsts.tolist(), view.chunks.content_keys(firsts).tolist(), strict=True))
    first_of = {key: first for first, key in sorted(contents.items(), reverse=True)}
    similar |= {(first_of[key], first) for first, key in contents.items() if first_of[key] != first}  # equal texts
    assert {(a, b) for a, b in similar if a in eips and b in ercs} == expected
    assert len(expected) >= 2


def grams(text: str) -> set[int]:
    """Hashes of the 13-grams, by Python's own."""
    words = words_of(text)
    return {hash(tuple(words[i : i + 13])) for i in range(len(words) - 12)}
