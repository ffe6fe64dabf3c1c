"""Positions against brute force, with any deletions, also where no word was ever written."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrodb.errors import DamagedFileError
from retrodb.export.position_words import WORD
from retrodb.export.positions import ExportPositions, SpanRecord, live_span


@dataclass(frozen=True)
class MadeChunks:
    """Ranges of chunks with gaps between them: which are live, and the document of each."""

    first: tuple[int, ...]
    is_live: tuple[np.ndarray, ...]
    document: tuple[np.ndarray, ...]

    def live_mask(self, first: int, count: int) -> np.ndarray:
        mask = self.is_live[self.first.index(first)]
        assert len(mask) == count
        return mask

    def document_ids(self, ids: np.ndarray) -> np.ndarray:
        known = {
            first + i: first + int(document)
            for first, documents in zip(self.first, self.document, strict=True)
            for i, document in enumerate(documents)
        }
        return np.array([known[i] for i in ids.tolist()], dtype=np.int64)


@st.composite
def made_chunks(draw: st.DrawFn) -> MadeChunks:
    firsts, live, documents, first = [], [], [], draw(st.integers(0, 3))
    for _ in range(draw(st.integers(0, 4))):
        count = draw(st.integers(1, 200))
        rng = np.random.default_rng(draw(st.integers(0, 99)))
        firsts.append(first)
        live.append(rng.random(count) < draw(st.sampled_from([0.0, 0.3, 0.9, 1.0])))
        documents.append(np.cumsum(rng.random(count) < 0.2))
        first += count + draw(st.integers(0, 100))
    return MadeChunks(tuple(firsts), tuple(live), tuple(documents))


def opened(chunks: MadeChunks) -> ExportPositions:
    parts = [live_span(chunks, first, len(mask)) for first, mask in zip(chunks.first, chunks.is_live, strict=True)]  # type: ignore[arg-type]
    words = np.concatenate([np.empty(0, dtype=WORD), *(words for _, words in parts)])
    return ExportPositions([record for record, _ in parts], words)


@settings(max_examples=80, deadline=None)
@given(made_chunks())
def test_positions_and_runs_are_those_of_counting(chunks: MadeChunks) -> None:
    positions = opened(chunks)
    ids = [first + i for first, mask in zip(chunks.first, chunks.is_live, strict=True) for i in np.flatnonzero(mask)]
    document = chunks.document_ids(np.array(ids, dtype=np.int64)).tolist()
    begins = [
        n == 0 or ids[n] != ids[n - 1] + 1 or document[n] != document[n - 1] or ids[n] in chunks.first
        for n in range(len(ids))
    ]
    assert len(positions) == len(ids)
    assert positions.num_runs == sum(begins)
    asked = np.arange(-2, max(ids, default=0) + 70)
    expected = {i: n for n, i in enumerate(ids)}
    assert positions.positions(asked).tolist() == [expected.get(i, -1) for i in asked.tolist()]
    assert positions.positions(asked.reshape(-1, 1)).shape == (len(asked), 1)
    every = np.arange(-1, len(ids))
    assert positions.runs_until(every).tolist() == [0, *np.cumsum(np.array(begins, dtype=int)).tolist()]
    for start, stop in ((0, len(ids)), (3, 9), (len(ids) // 2, len(ids) + 5), (5, 5)):
        assert positions.ids(start, stop).tolist() == ids[start:stop]
    assert [i for block in positions.blocks() for i in block.tolist()] == ids
    sizes = [size for span in positions.spans for size in span.run_sizes.tolist()]
    assert positions.longest_run == max(sizes, default=0)
    assert positions.num_sequences == sum(-(-size // 32) for size in sizes)
    firsts = [span.first + start for span in positions.spans for start in span.run_starts.tolist()]
    assert firsts == np.flatnonzero(begins).tolist()
    assert [span.first_run for span in positions.spans] == [
        int(np.sum(begins[: span.first])) for span in positions.spans
    ]


def test_ids_and_positions_beyond_32_bits_are_found() -> None:
    """Spans of made-up counts, of which only the last has words."""
    last = MadeChunks((1 << 34,), (np.array([True, False, True, True]),), (np.array([0, 0, 0, 1]),))
    record, words = live_span(last, 1 << 34, 4)  # type: ignore[arg-type]
    many = 1 << 33
    before = SpanRecord(
        0, 0, num_positions=many, num_runs=many // 2, longest_run=2, num_sequences=many, digest="made up"
    )
    positions = ExportPositions([before, record], words)
    ids = (1 << 34) + np.arange(4)
    assert positions.positions(ids).tolist() == [many, -1, many + 1, many + 2]
    assert positions.runs_until(many + np.arange(3)).tolist() == [many // 2 + n for n in (1, 2, 3)]
    assert positions.ids(many, many + 2).tolist() == [ids[0], ids[2]]


def test_a_file_of_words_of_another_size_is_refused(tmp_path) -> None:  # type: ignore[no-untyped-def]
    record, words = live_span(MadeChunks((0,), (np.ones(70, bool),), (np.zeros(70, int),)), 0, 70)  # type: ignore[arg-type]
    (tmp_path / "words").write_bytes(words.tobytes())
    assert ExportPositions.open(tmp_path / "words", [record]).positions(np.array([69])).tolist() == [69]
    (tmp_path / "words").write_bytes(words.tobytes()[:-1])
    with pytest.raises(DamagedFileError, match="words"):
        ExportPositions.open(tmp_path / "words", [record])
