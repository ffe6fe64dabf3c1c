"""Makes the golden database: a small one, from made-up text, with every kind of file that a database can hold.

    python tests/golden/generate.py --out FOLDER
    python tests/golden/generate.py --archive FILE.tar.zst

The folder then has `db/`, the database, and `inputs/`, the files that it was made of and that its recipe names. Two runs on one
machine give the same bytes: the clock is fixed and all paths are relative.

Neither the folder nor the archive is committed yet, because the disk format still changes. The archive of the released format
will be committed and never made again: what a released retrodb wrote has to open in all later ones.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import shutil
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import zstandard
from golden_inputs import ARTICLES, write_corrected_articles, write_inputs

import retrodb
from retrodb.database import Database, train_tokenizer
from retrodb.errors import TooManyRejects
from retrodb.store.storage import LocalStorage

CLOCK = "2026-01-{day:02d}T00:00:00.000000+00:00"
DATABASE, INPUTS = Path("db"), Path("inputs")
WITHDRAWN, RETURNED, PURGED = ARTICLES[1], ARTICLES[4], "letter-dyer"
"""Documents: one that is deleted, one that is deleted and taken back, and one that is purged."""
RECIPE = """\
[sources.articles]
inputs = ["../inputs/articles/*.jsonl"]

[testsets.exam]
files = ["../inputs/exam.jsonl"]

[near_duplicates]

[taggers.vivid]
wordlist = "../inputs/words.txt"

[neighbours.self]
k = 2
spare_neighbours = 2
"""


def generate(folder: Path) -> Path:
    """Write the database and its inputs into a new folder; gives the database's."""
    folder.mkdir(parents=True)
    with _working_in(folder):
        write_inputs(INPUTS)
        files = sorted(map(str, INPUTS.rglob("*.jsonl")))
        train_tokenizer(files, "tokenizer.json", vocab_size=400)
        clock = CLOCK.format(day=1)
        db = retrodb.create(DATABASE, tokenizer="tokenizer.json", chunk_tokens=16, encoder="hashing:16", clock=clock)
        _add_documents(db)
        _delete_documents(db)
        _build_tables(db)
        _change_documents(db)
        _maintain()
        (DATABASE / "recipe.toml").write_text(RECIPE)
        for unfinished in ("tmp", "locks"):  # never part of a database
            shutil.rmtree(DATABASE / unfinished, ignore_errors=True)
    return folder / DATABASE


def _add_documents(db: Database) -> None:
    db.ingest([INPUTS / "articles"], source="articles", holdout=0.15)
    db.add_packed_queries("packed", sequences=64)  # of the articles alone
    db.ingest([INPUTS / "letters.jsonl"], source="letters", max_reject_rate=0.5)
    db.ingest([INPUTS / "annals.jsonl"], source="annals")
    db.ingest([INPUTS / "questions.jsonl"], source="questions", key_field="question", value_field="answer")
    db.add_queries("training", [INPUTS / "training.jsonl"])


def _delete_documents(db: Database) -> None:
    db.dedup([INPUTS / "exam.jsonl"])
    db.near_duplicates()
    db.tag("vivid", wordlist=str(INPUTS / "words.txt"))
    db.filter(doc_ids=[WITHDRAWN, RETURNED], reason="withdrawn")
    db.undelete("withdrawn", doc_ids=[RETURNED])


def _build_tables(db: Database) -> None:
    db.embed()
    db.index(factory="IVF2,Flat")
    db.embed(space="codes", encoder="hashing:8", keep_vectors=False, factory="IVF2,SQ8")
    for queries in ("self", "heldout", "training", "packed"):
        db.neighbours(queries=queries, k=2, spare_neighbours=2)
    row, nearest = _first_chunk(db, RETURNED), _first_chunk(db, ARTICLES[5])
    db.edit_neighbours(row, ban=nearest)
    db.edit_neighbours(row + 1, pin=nearest)


def _first_chunk(db: Database, doc_id: str) -> int:
    return int(db.sql(f"select first_chunk from documents where doc_id = '{doc_id}'").rows[0][0])


def _change_documents(db: Database) -> None:
    """A new version of a document, a purge, and neighbour tables brought up to date by patches."""
    write_corrected_articles(INPUTS)
    db.ingest([INPUTS / "articles"], source="articles")
    db.tag("vivid", wordlist=str(INPUTS / "words.txt"))
    db.embed()
    db.index()
    db.embed(space="codes")
    db.repair_neighbours()
    assert db.purge([PURGED]).is_clean


def _maintain() -> None:
    """An ingest and a repair that were interrupted, collections, and a check of a part of the bytes."""
    with contextlib.suppress(TooManyRejects):  # its run stays open
        _open_on(2).ingest([INPUTS / "drafts.jsonl"], source="drafts")
    _interrupt_a_repair()
    for day in (2, 10):  # the second collection deletes what the first one marked
        _open_on(day).gc(keep_snapshots=1)
    db = _open_on(11)
    db.pin(name="golden")
    db.gc(keep_snapshots=1)  # marks what a later one would delete
    db.check(read_data=True, subset=0.3)


def _open_on(day: int) -> Database:
    return retrodb.open(DATABASE, clock=CLOCK.format(day=day))


def _interrupt_a_repair() -> None:
    [path] = _open_on(2).sql("select path from files where kind = 'bands' order by path limit 1").rows[0]
    damaged = bytearray((DATABASE / path).read_bytes())
    damaged[-1] ^= 1
    (DATABASE / path).write_bytes(damaged)
    with contextlib.suppress(_KilledError):
        retrodb.open(_DiesAtTheEndOfARepair(DATABASE), clock=CLOCK.format(day=2)).repair()


class _KilledError(Exception):
    pass


class _DiesAtTheEndOfARepair(LocalStorage):
    """A repair on this storage does everything but delete its record of what is left to do."""

    def delete(self, path: str) -> None:
        if path == "repair.json":
            raise _KilledError
        super().delete(path)


@contextlib.contextmanager
def _working_in(folder: Path) -> Iterator[None]:
    """Relative paths mean files in this folder, and nothing that another run cached is used."""
    cache = os.environ.get("RETRODB_CACHE_DIR")
    with tempfile.TemporaryDirectory() as own_cache, contextlib.chdir(folder):
        os.environ["RETRODB_CACHE_DIR"] = own_cache
        try:
            yield
        finally:
            del os.environ["RETRODB_CACHE_DIR"]
            if cache is not None:
                os.environ["RETRODB_CACHE_DIR"] = cache


def write_archive(folder: Path, archive: Path) -> None:
    """Pack a folder; equal contents give equal bytes."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            member = tarfile.TarInfo(path.relative_to(folder).as_posix())
            member.size = path.stat().st_size
            tar.addfile(member, io.BytesIO(path.read_bytes()))
    archive.write_bytes(zstandard.ZstdCompressor(level=19).compress(packed.getvalue()))


def read_archive(archive: Path, folder: Path) -> None:
    """Unpack an archive into a folder."""
    packed = zstandard.ZstdDecompressor().decompress(archive.read_bytes())
    with tarfile.open(fileobj=io.BytesIO(packed)) as tar:
        tar.extractall(folder, filter="data")


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Makes the golden database from made-up text.")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="New folder for the database and its inputs.")
    parser.add_argument("--archive", type=Path, metavar="FILE.tar.zst", help="Archive of that folder to write.")
    given = parser.parse_args(arguments)
    if given.out is None and given.archive is None:
        parser.error("name --out, --archive or both")
    if given.out is not None and given.out.exists():
        parser.error(f"{given.out} exists already; name a new folder")
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.out or Path(temporary) / "golden"
        generate(folder)
        if given.archive is not None:
            write_archive(folder, given.archive)


if __name__ == "__main__":
    main()
