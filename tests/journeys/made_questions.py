"""Question and answer data of made-up words, with judgements and a test set."""

from __future__ import annotations

from pathlib import Path

import orjson
from made_documents import made_text

NUM_PAIRS = 40
QUOTED = (4, 17)
"""Pairs whose answers the test set quotes."""


def question(number: int) -> str:
    """A question of 14 words."""
    return f"What is {made_text(f'question {number}', 11)}?"


def answer(number: int) -> str:
    """An answer of 70 words."""
    return f"{made_text(f'answer {number}', 70)}."


def write_questions(folder: Path) -> None:
    """Pairs, ten queries with one relevant pair each, their judgements as in BEIR and as in TREC, and a test set."""
    _write(
        folder / "pairs.jsonl",
        [
            {"id": f"qa{n}", "topic": f"t{n % 4}", "question": question(n), "answer": answer(n)}
            for n in range(NUM_PAIRS)
        ],
    )
    asked = range(0, NUM_PAIRS, 4)
    # A query is a question without its first words.
    _write(folder / "queries.jsonl", [{"_id": f"q{n}", "text": question(n).split(maxsplit=3)[3]} for n in asked])
    lines = ["query-id\tcorpus-id\tscore", *(f"q{n}\tqa{n}\t1" for n in asked)]
    (folder / "test.tsv").write_text("\n".join(lines) + "\n")
    (folder / "test.qrels").write_text("".join(f"q{n} 0 qa{n} 1\n" for n in asked))
    items = [{"id": f"exam{n}", "question": made_text(f"exam {n}", 20), "answer": answer(n)} for n in QUOTED]
    items += [
        {"id": f"exam{n}", "question": made_text(f"exam {n}", 20), "answer": made_text(f"other {n}", 70)}
        for n in (50, 51)
    ]
    _write(folder / "exam.jsonl", items)


def _write(path: Path, records: list[dict[str, str]]) -> None:
    path.write_bytes(b"".join(orjson.dumps(record) + b"\n" for record in records))
