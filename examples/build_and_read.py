"""Build a small database and read its neighbour table: python examples/build_and_read.py [FOLDER]

It takes seconds, because it uses `hashing:256` instead of a real encoder. `hashing:256` compares words. A real encoder
compares meanings.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import numpy as np

import retrodb
from retrodb.database import train_tokenizer

RIVERS = {"Danube": "Black Sea", "Rhine": "North Sea", "Elbe": "North Sea", "Oder": "Baltic Sea", "Po": "Adriatic Sea"}


def main(folder: Path) -> None:
    """Run every stage once, and read what a trainer reads."""
    articles = folder / "rivers.jsonl"
    texts = {
        river: " ".join([f"The {river} is a river of Europe."] * 3 + [f"The {river} flows into the {sea}."] * 3)
        for river, sea in RIVERS.items()
    }
    articles.write_text("".join(json.dumps({"id": name, "text": text}) + "\n" for name, text in texts.items()))

    train_tokenizer([articles], folder / "tokenizer.json", vocab_size=400)
    db = retrodb.create(
        folder / "rivers.retrodb", tokenizer=str(folder / "tokenizer.json"), chunk_tokens=16, encoder="hashing:256"
    )
    print(db.ingest([articles], source="rivers"))
    db.embed()
    db.index()
    print(db.neighbours(k=2))

    table, chunks = db.neighbour_table(), db.view().chunks
    rows = table.rows()[:3]
    ids, scores = table.read_scores(rows)  # (3, 2): -1 where a row has fewer neighbours
    for row, text, row_ids, row_scores in zip(rows, chunks.texts(rows), ids, scores, strict=True):
        print(f"\n{row}: {text!r}")
        values = zip(chunks.texts(row_ids), chunks.texts(chunks.continuation(row_ids)), row_scores, strict=True)
        for neighbour, continuation, score in values:
            print(f"    {table.measure} {score:.3f} {neighbour!r} -> {continuation!r}")
    # As token ids ([N, F] in the paper), padded to the chunk length. A missing chunk has length 0.
    tokens = chunks.gather_tokens(np.stack([ids, chunks.continuation(ids.ravel()).reshape(ids.shape)], axis=-1).ravel())
    print(f"\ntokens {tokens.tokens.shape}, lengths {tokens.lengths.tolist()}")

    [hits] = db.search(["Which river flows into the Baltic Sea?"], k=1)
    print(f"\n{hits[0].doc_id}: {hits[0].text!r}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as temporary:
            main(Path(temporary))
