"""Made-up texts: the input files of the golden database, the same bytes on every machine.

A small grammar writes them. An article is about one place of its own, so a search for its words finds it. No other test's texts
are used, because these must not change when those do.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from pathlib import Path

PLACES = ("Arvik", "Belmor", "Castrin", "Dunmere", "Eskdal", "Farrow", "Gellin", "Hovden", "Istral", "Jorvan")
TRADES = ("baker", "cooper", "dyer", "ferryman", "glazier", "mason", "miller", "potter", "saddler", "weaver")
VERBS = ("builds", "carries", "draws", "keeps", "mends", "paints", "repairs", "sells", "stores", "washes")
COLOURS = ("amber", "black", "copper", "green", "grey", "ivory", "purple", "scarlet", "silver", "yellow")
THINGS = ("barrels", "bells", "bridges", "clocks", "jars", "lamps", "nets", "roofs", "saddles", "windows")
TIMES = ("at dawn", "before noon", "every autumn", "in deep winter", "on market days", "when the tide turns")

ARTICLES = tuple(f"article-{place.lower()}" for place in PLACES)
"""Ids of the articles; the n-th is about the n-th place."""
LONG_TEXT = 1600
"""Sentences of a document whose tokens are longer than a block, so that a file of block digests describes them."""
LATER_ARTICLE = "article-kelmar"
"""An article that no input file has yet."""


def article(name: str, num_sentences: int = 6) -> str:
    """Sentences about a place; two names share no 13 words in a row."""
    choose, place = random.Random(name).choice, name.rpartition("-")[2].capitalize()
    sentences = [
        f"In {place} the {choose(TRADES)} {choose(VERBS)} {choose(COLOURS)} {choose(THINGS)} {choose(TIMES)}."
        for _ in range(num_sentences)
    ]
    return " ".join(sentences)


def record(name: str, text: str | None = None) -> dict[str, object]:
    """A record of an input file: an id, a text and metadata."""
    return {"id": name, "text": text or article(name), "language": "en", "year": 1900 + len(name)}


def write_json_lines(path: Path, records: Iterable[object]) -> Path:
    """A JSON Lines file of records."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def write_inputs(folder: Path) -> None:
    """All input files: five sources, a test set, a query set and a word list."""
    write_json_lines(folder / "articles/first.jsonl", map(record, ARTICLES))
    letters = [record(f"letter-{trade}") for trade in TRADES[:4]]
    copy = record("letter-copy", f"{article('letter-baker')} Farewell.")  # a near-duplicate
    quotation = record("letter-quotation", article("exam-leak"))  # a leak of the test set
    refused = {"id": "letter-without-text"}
    write_json_lines(folder / "letters.jsonl", [*letters, copy, quotation, refused])
    write_json_lines(folder / "annals.jsonl", [record("annals-lorvik", article("annals-lorvik", LONG_TEXT))])
    write_json_lines(folder / "drafts.jsonl", [record("draft-a"), {"id": "draft-without-text"}])
    write_json_lines(folder / "questions.jsonl", map(_question, PLACES[:4]))
    write_json_lines(folder / "exam.jsonl", [record("exam-leak"), record("exam-other")])
    write_json_lines(folder / "training.jsonl", [record("training-a"), record("training-b")])
    (folder / "words.txt").write_text("purple\nscarlet\nmarket days\n")


def write_corrected_articles(folder: Path) -> None:
    """The file of articles with another version of the last one."""
    corrected = record(ARTICLES[-1], article(ARTICLES[-1], 5))
    write_json_lines(folder / "articles/first.jsonl", [*map(record, ARTICLES[:-1]), corrected])


def _question(place: str) -> dict[str, object]:
    question = (
        f"Who mends the {COLOURS[PLACES.index(place)]} bells of {place} when the old tower is closed for repairs?"
    )
    return {"id": f"question-{place.lower()}", "question": question, "answer": article(f"answer-{place}", 3)}
