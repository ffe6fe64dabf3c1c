"""Chunks by id: what is deleted, absent or -1 never shows, and continuations stay within their document."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from retrodb.format.schemas import ROLE_KEY, ROLE_VALUE
from retrodb.view.chunk_set import ChunkSet

from .made_chunks import DOCS, MIN_KEY, Chunk, Doc, M, all_ids, expected_chunks, make_chunk_set

FAR = 2**33 + 5
SOME = st.sets(st.integers(0, 40), max_size=12)


@settings(max_examples=60, deadline=None)
@given(st.lists(DOCS, min_size=1, max_size=3), SOME, SOME, st.integers(0, 3), st.randoms(use_true_random=False))
def test_every_answer_is_that_of_a_plain_loop(
    of_shards: list[list[Doc]], deleted: set[int], absent: set[int], gap: int, random: object
) -> None:
    """On several shards with gaps between them, beyond 2^33, whatever is deleted or compacted away."""
    shards, first = [], FAR
    for docs in of_shards:
        shards.append((first, docs))
        first += len(expected_chunks(docs, 0)) + gap
    dead = {FAR + i for i in deleted}
    gone = frozenset(FAR + i for i in absent if FAR + i in dead)  # only what is deleted is ever compacted away
    ids = all_ids(shards)
    random.shuffle(ids)  # type: ignore[attr-defined]
    known = {chunk.id: chunk for first, docs in shards for chunk in expected_chunks(docs, first)}
    live = {i: chunk for i, chunk in known.items() if i not in dead}
    with TemporaryDirectory() as folder:
        chunks = make_chunk_set(Path(folder), shards, sorted(dead), gone)
        assert chunks.is_live(ids).tolist() == [i in live for i in ids]
        assert chunks.continuation(ids).tolist() == [following(known, live, i, gone) for i in ids.tolist()]
        assert chunks.texts(ids) == [live[i].text if i in live else "" for i in ids.tolist()]
        check_tokens(chunks, live, ids)
        for first, docs in shards:
            count = len(expected_chunks(docs, 0))
            span = range(first - 1, first + count + 1)
            assert chunks.live_mask(first - 1, count + 2).tolist() == [i in live for i in span]
            assert chunks.key_mask(first - 1, count + 2).tolist() == [wants_vector(live.get(i)) for i in span]
        present = [i if i in known and i not in gone else -1 for i in ids.tolist()]
        assert chunks.document_ids(ids).tolist() == [known[i].document if i >= 0 else -1 for i in present]
        found = [None if each is None else each["first_chunk"] for each in chunks.documents(ids)]
        assert found == [known[i].document if i in known else None for i in ids.tolist()], (
            "also of what is compacted away"
        )


def following(known: dict[int, Chunk], live: dict[int, Chunk], own: int, gone: frozenset[int]) -> int:
    is_there = own in known and own not in gone and not known[own].is_last
    return own + 1 if is_there and own + 1 in live else -1


def wants_vector(chunk: Chunk | None) -> bool:
    if chunk is None or chunk.role == ROLE_VALUE:
        return False
    return chunk.id == chunk.document or len(chunk.tokens) >= MIN_KEY


def check_tokens(chunks: ChunkSet, live: dict[int, Chunk], ids: np.ndarray[tuple[int], np.dtype[np.int64]]) -> None:
    gathered = chunks.gather_tokens(ids)
    for own, row, length in zip(ids.tolist(), gathered.tokens.tolist(), gathered.lengths.tolist(), strict=True):
        tokens = live[own].tokens if own in live else ()
        assert row == [*tokens, *[0] * (M - len(tokens))]
        assert length == len(tokens)


def test_minus_one_is_padding_and_never_the_last_chunk(tmp_path: Path) -> None:
    chunks = make_chunk_set(tmp_path, [(0, [Doc(9)])], [])
    none = np.array([-1, -1])
    assert chunks.texts(none) == ["", ""]
    assert chunks.gather_tokens(none).tokens.tolist() == [[0] * M] * 2
    assert chunks.gather_tokens(none).lengths.tolist() == chunks.lengths(none).tolist() == [0, 0]
    assert chunks.continuation(none).tolist() == chunks.document_ids(none).tolist() == [-1, -1]
    assert chunks.documents(none) == [None, None]
    assert not chunks.is_live(none).any()


def test_continuation_ends_with_the_document_and_with_the_shard(tmp_path: Path) -> None:
    chunks = make_chunk_set(tmp_path, [(0, [Doc(5), Doc(4)]), (3, [Doc(8)])], [])
    assert chunks.continuation(np.arange(5)).tolist() == [1, -1, -1, 4, -1]


def test_continuation_of_the_last_key_chunk_is_the_first_value_chunk(tmp_path: Path) -> None:
    chunks = make_chunk_set(tmp_path, [(0, [Doc(5, value=6)])], [])
    roles = [chunk.role for chunk in expected_chunks([Doc(5, value=6)], 0)]
    assert roles == [ROLE_KEY, ROLE_KEY, ROLE_VALUE, ROLE_VALUE]
    assert chunks.continuation(np.arange(4)).tolist() == [1, 2, 3, -1]
    assert chunks.key_mask(0, 4).tolist() == [True, False, False, False]  # the short tail of the key, and the value


def test_deleted_chunk_is_no_continuation(tmp_path: Path) -> None:
    chunks = make_chunk_set(tmp_path, [(0, [Doc(12)])], [1])
    assert chunks.continuation(np.arange(3)).tolist() == [-1, 2, -1]


def test_texts_are_found_across_row_groups(tmp_path: Path) -> None:
    docs = [Doc(M * 5000), Doc(M * 4000)]
    absent = frozenset(range(10, 4500, 7))
    chunks = make_chunk_set(tmp_path, [(FAR, docs)], [FAR + i for i in absent], frozenset(FAR + i for i in absent))
    rows = np.array([8999, 0, 4095, 4096, 10, 8191, 8192, 4999, 5000])
    assert chunks.texts(FAR + rows) == ["" if i in absent else f"text {FAR + i}" for i in rows.tolist()]


def test_empty_set_answers_too(tmp_path: Path) -> None:
    chunks = make_chunk_set(tmp_path, [], [])
    ids = np.array([0, -1, 2**40])
    assert (chunks.end, chunks.texts(ids)) == (0, ["", "", ""])
    assert chunks.continuation(ids).tolist() == [-1, -1, -1]
