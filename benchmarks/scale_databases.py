"""The databases that `bench_scale.py` measures on: built from made-up documents, or grown by linked copies of shards."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import orjson
from made_documents import WORDS, made_text
from replicated import replicate

import retrodb
from retrodb.corpus.train_tokenizer import train_byte_bpe
from retrodb.store.snapshots import read_head
from retrodb.store.storage import LocalStorage

CHUNKS_PER_DOCUMENT = 16  # on average, as in a trillion tokens: 1.56e10 chunks of 1e9 documents
DIMENSIONS = 64


@dataclass(frozen=True)
class ScaleDatabase:
    """A database of one size; commands run on copies of it."""

    folder: Path
    kind: str  # "real" or "replicated"
    num_chunks: int
    head: int  # number of its newest snapshot

    @staticmethod
    def at(folder: Path, kind: str) -> ScaleDatabase:
        """The database in this folder."""
        head = read_head(LocalStorage(folder))
        return ScaleDatabase(folder, kind, head.totals["chunks"], head.number)

    @property
    def name(self) -> str:
        return f"{self.num_chunks:,} {self.kind}"


def build(folder: Path, documents: Path, num_chunks: int, run: Callable[[list[str]], None]) -> ScaleDatabase:
    """A database of about so many chunks, embedded and indexed. One that is there already is kept.

    Args:
        documents: where its input is written.
        run: runs `retrodb` with these arguments.
    """
    if not (folder / "recipe.toml").exists():
        shutil.rmtree(folder, ignore_errors=True)
        documents.parent.mkdir(parents=True, exist_ok=True)
        tokenizer = documents.with_suffix(".tokenizer.json")
        train_byte_bpe([made_text(seed, 200) for seed in range(20)], 400).save(tokenizer)
        write_made_documents(documents, num_chunks)
        retrodb.create(folder, tokenizer=str(tokenizer), encoder=f"hashing:{DIMENSIONS}")
        run(["ingest", str(folder), str(documents), "--source", "made"])
        run(["embed", str(folder)])
        run(["index", str(folder)])
        run(delete_some(folder))
        (folder / "recipe.toml").write_text(
            f'[sources.made]\ninputs = ["{documents}"]\n'
        )  # last: the database is whole
    return ScaleDatabase.at(folder, "real")


def build_in_shards(folder: Path, num_chunks: int, num_shards: int, dim: int, factory: str) -> None:
    """A database with so many shards of about equal size, indexed; its last commit merged the index parts of the shards.

    One that is there already is kept.
    """
    if (folder / "built").exists():
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    documents, tokenizer = folder / "documents.jsonl", folder / "tokenizer.json"
    train_byte_bpe([made_text(seed, 200) for seed in range(20)], 400).save(tokenizer)
    database = retrodb.create(folder / "db", tokenizer=str(tokenizer), encoder=f"hashing:{dim}")
    for shard in range(num_shards):
        write_made_documents(documents, num_chunks // num_shards, shard)
        database.ingest([str(documents)], source=f"made-{shard}")
    database.embed()
    database.index(factory=factory)
    documents.unlink()
    (folder / "built").touch()


def grow(base: ScaleDatabase, folder: Path, num_chunks: int, run: Callable[[list[str]], None]) -> ScaleDatabase:
    """About so many chunks, by copies of the shards of a database. One that is there already is kept."""
    if not folder.exists():
        unfinished = folder.with_name(f"{folder.name}.unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        copy_by_links(base.folder, unfinished)
        replicate(LocalStorage(unfinished), max(1, round(num_chunks / base.num_chunks) - 1))
        run(["index", str(unfinished)])  # merges the copied parts, which otherwise "nothing new" would do
        run(delete_some(unfinished))
        unfinished.rename(folder)
    return ScaleDatabase.at(folder, "replicated")


def delete_some(folder: Path) -> list[str]:
    """Deletes a hundredth of the documents, in all shards: no database that is in use is without deletions."""
    return ["filter", str(folder), "--where", "num_chars % 101 = 0", "--reason", "some"]


def copy_by_links(source: Path, target: Path) -> None:
    """A copy that shares the bytes of all files: none of them is ever changed in place."""
    shutil.copytree(source, target, copy_function=os.link, ignore=shutil.ignore_patterns("runs", "locks", "tmp"))


def write_made_documents(path: Path, num_chunks: int, seed: int = 0) -> None:
    """Documents of random words, 1 to 31 chunks long, until there are about so many chunks."""
    random, words = np.random.default_rng(seed), np.array(WORDS)
    number = written = 0
    with path.open("wb") as file:
        while written < num_chunks:
            size = int(random.integers(1, 2 * CHUNKS_PER_DOCUMENT))
            text = " ".join(words[random.integers(0, len(words), 64 * size)].tolist())
            file.write(orjson.dumps({"id": f"d{number}", "text": text}) + b"\n")
            number, written = number + 1, written + size
