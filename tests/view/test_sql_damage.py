"""A flipped bit in a file that a query reads is found, or does not change the answer."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

import retrodb
from retrodb.errors import DamagedFileError

from .test_sql import build

QUERIES = (
    "select * from documents order by first_chunk",
    "select * from chunks order by chunk_id",
    "select count(*), min(doc_id) from documents where num_tokens > 40 and doc_id > 't1'",
    "select count(*), sum(num_tokens) from chunks where position < 3 and text < 'Z'",
)


def check_flips(folder: Path, number: int, queries: tuple[str, ...]) -> None:
    """Flip one bit at a time and keep the modification time, so that the file counts as verified."""
    db = build(folder)
    answers = [db.sql(query).rows for query in queries]
    files = sorted(path for kind in ("documents", "chunks") for path in (Path(db.path) / kind).iterdir())
    draw, num_found = random.Random(number), 0
    for _ in range(number):
        path = draw.choice(files)
        content, times = path.read_bytes(), path.stat()
        bit = draw.randrange(8 * len(content))
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        for query, answer in zip(queries, answers, strict=True):
            with path.open("r+b") as file:
                file.write(flipped)
            os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
            try:
                assert retrodb.open(db.path).sql(query).rows == answer, (path, bit)
            except DamagedFileError:
                num_found += 1
        with path.open("r+b") as file:
            file.write(content)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert num_found


def test_flipped_bits_never_change_an_answer(tmp_path: Path) -> None:
    check_flips(tmp_path / "db", 25, QUERIES[:2])


@pytest.mark.soak
def test_many_flipped_bits_never_change_an_answer(tmp_path: Path) -> None:
    check_flips(tmp_path / "db", 500, QUERIES)
