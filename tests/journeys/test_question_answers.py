"""Questions and answers with judgements: retrieval quality, passages for a reader, and a test set that quotes answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson

from .made_questions import NUM_PAIRS, QUOTED, answer, question, write_questions
from .shell import User

FIELDS = "--key-field question --value-field answer"


def test_questions_and_answers_are_built_judged_and_cleaned(tmp_path: Path) -> None:
    write_questions(tmp_path)
    user = User(tmp_path)
    _build(user)
    _judge(user)
    _export(user)
    _remove_leaks(user)


def _build(user: User) -> None:
    refused = user.types("retrodb tokenizer train pairs.jsonl --out tokenizer.json", code=1)
    assert "its fields are: id, topic, question, answer" in refused.err
    assert "--key-field" in refused.err
    user.types("retrodb tokenizer train pairs.jsonl --out tokenizer.json --key-field question", code=2)
    trained = user.types(
        f"retrodb tokenizer train pairs.jsonl --out tokenizer.json --vocab-size 500 {FIELDS} --json"
    ).row
    assert trained["num_characters"] == sum(len(question(n)) + len(answer(n)) for n in range(NUM_PAIRS))

    options = "--tokenizer tokenizer.json --encoder hashing:64"
    assert (
        "text from 'question'" in user.types(f"retrodb build qa.retrodb pairs.jsonl {options} {FIELDS} --dry-run").out
    )
    user.types(f"retrodb init qa.retrodb {options}")
    wrong = user.types(
        "retrodb ingest qa.retrodb pairs.jsonl --source qa --key-field question --value-field answr", code=1
    )
    assert "its fields are: id, topic, question, answer" in wrong.err
    row = user.types(f"retrodb ingest qa.retrodb pairs.jsonl --source qa {FIELDS} --json").row
    assert (row["num_added"], row["num_rejected"]) == (NUM_PAIRS, 0)
    assert "retrodb embed" in user.types("retrodb search qa.retrodb kaban", code=1).err
    user.types("retrodb embed qa.retrodb")
    user.types("retrodb index qa.retrodb")


def _judge(user: User) -> None:
    for qrels in ("test.tsv", "test.qrels"):
        row = user.types(f"retrodb eval-retrieval qa.retrodb --queries queries.jsonl --qrels {qrels} --k 5 --json").row
        assert (row["num_queries"], row["num_missing_documents"], row["recall_at_k"]) == (10, 0, 1.0)
    hit = user.types(f'retrodb search qa.retrodb "{question(7)}" --k 1 --json').row
    assert (hit["doc_id"], str(hit["text"]).strip()) == ("qa7", question(7))
    assert str(hit["continuation"]).strip() in answer(7)
    assert "empty" in user.types('retrodb search qa.retrodb ""', code=2).err


def _export(user: User) -> None:
    user.types("retrodb neighbours qa.retrodb --k 2")
    user.types("retrodb export qa.retrodb passages --to dpr")
    records = orjson.loads((user.folder / "passages/train.json").read_bytes())
    assert [(record["question"], record["answers"]) for record in records] == [
        (question(n), [answer(n)]) for n in range(NUM_PAIRS)
    ]
    for record in records:
        for context in record["ctxs"]:
            number = int(context["title"].removeprefix("qa"))
            assert context["text"].startswith(f"{question(number)} {answer(number)[:40]}")


def _remove_leaks(user: User) -> None:
    # Without a template, only the questions of the test set are compared, and the note says so.
    first = user.types("retrodb dedup qa.retrodb --against exam.jsonl --dry-run")
    assert "would delete 0 documents" in first.out
    assert "not compared: answer" in first.err
    assert "--text-template" in first.err
    template = '--text-template "{question} {answer}"'
    assert (
        "2 documents with a containment"
        in user.types(f"retrodb dedup qa.retrodb --against exam.jsonl {template} --dry-run").out
    )
    answers = '--text-template "{answer}"'
    noted = user.types("retrodb leakage qa.retrodb --against exam.jsonl")
    assert "not compared: answer" in noted.err
    before = user.types(f"retrodb leakage qa.retrodb --against exam.jsonl {answers} --k 40 --json").row
    shown = user.types(f"retrodb dedup qa.retrodb --against exam.jsonl {answers} --rule containment>=0.5 --report").out
    assert "deletes 2 documents" in shown
    for number in QUOTED:
        assert f"exam/exam{number}  and  qa/qa{number}: deleted" in shown
    [row] = user.types("retrodb testsets qa.retrodb --json").rows
    assert (row["testset"], row["num_items"], row["num_removed_documents"]) == ("exam", 4, 2)
    after = user.types(f"retrodb leakage qa.retrodb --against exam.jsonl {answers} --k 40 --json").row
    assert (_num_copied(before), _num_copied(after)) == (len(QUOTED), 0)
    user.types("retrodb neighbours qa.retrodb --repair")
    user.types("retrodb export --refresh passages")
    records = orjson.loads((user.folder / "passages/train.json").read_bytes())
    assert len(records) == NUM_PAIRS - len(QUOTED)
    assert not [record for record in records if record["answers"][0] in map(answer, QUOTED)]
    judged = user.types("retrodb eval-retrieval qa.retrodb --queries queries.jsonl --qrels test.tsv")
    assert "1 of 10 judged documents are not in the database" in judged.out + judged.err
    assert "no damage found" in user.types("retrodb check qa.retrodb --read-data").out


def _num_copied(leakage: dict[str, Any]) -> int:
    """Chunks whose tokens are nearly all in one neighbour."""
    return sum(leakage["chunks_by_ratio"][56:])
