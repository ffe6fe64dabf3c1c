"""Build: the plan before anything is written, the database that is built, and databases that are not changed."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_documents import made_text, write_documents

import retrodb
from retrodb.config import IngestParams
from retrodb.corpus.input_files import expand_inputs
from retrodb.corpus.lm_tokenizer import Tokenizer
from retrodb.database import build, plan_build
from retrodb.errors import ConflictError, InputError, UsageError
from retrodb.maintain.update.build import build_recipe
from retrodb.maintain.update.sample import InputSample, sample_inputs
from retrodb.store.snapshots import snapshot_numbers
from retrodb.store.storage import LocalStorage

DOCUMENTS = {f"d{n}": made_text(n, 40 + n) for n in range(30)}


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_documents(tmp_path / "articles.jsonl", DOCUMENTS)


def sample(path: Path, tokenizer: Path, **options: object) -> InputSample:
    params = IngestParams(source="s", **options)  # type: ignore[arg-type]
    return sample_inputs(expand_inputs([path]), params, Tokenizer.load(tokenizer), 64)


def test_a_build_runs_every_stage_and_update_continues_its_recipe(
    tmp_path: Path, corpus: Path, made_tokenizer: Path
) -> None:
    exam = write_documents(tmp_path / "exam.jsonl", {"t": DOCUMENTS["d3"]})
    options = {"tokenizer": str(made_tokenizer), "encoder": "hashing:32", "against": [exam], "holdout": 0.2}
    plan = plan_build(tmp_path / "db", [corpus], **options)
    assert not (tmp_path / "db").exists()
    assert (plan.num_documents, plan.is_exact, plan.num_files) == (len(DOCUMENTS), True, 1)
    assert [row.stage for row in plan.stages] == ["ingest", "dedup", "embed", "index", "neighbours", "neighbours"]
    result = build(tmp_path / "db", [corpus], **options)
    assert result.exit_code == 0
    assert {step.stage for step in result.steps} == {"ingest", "dedup", "embed", "index", "neighbours"}
    db = retrodb.open(tmp_path / "db")
    assert result.num_documents + db.view().query_set("heldout").end > 0
    assert {table.table for table in db.stats().tables} == {"self", "heldout"}
    assert db.update().outcome == "nothing new"
    write_documents(corpus, DOCUMENTS | {"late": made_text(77, 50)})
    assert db.update().steps[0].counts["read"] == len(DOCUMENTS) + 1


def test_an_interrupted_build_is_continued_and_another_database_is_not_changed(
    tmp_path: Path, corpus: Path, made_tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"tokenizer": str(made_tokenizer), "encoder": "hashing:32"}
    with monkeypatch.context() as patch:
        patch.setattr("retrodb.database.Database.update", lambda self, **_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            build(tmp_path / "db", [corpus], **options)
    assert build(tmp_path / "db", [corpus], **options).num_documents == len(DOCUMENTS)
    assert build(tmp_path / "db", [corpus], **options).outcome == "nothing new"
    before = snapshot_numbers(LocalStorage(tmp_path / "db"))
    other = write_documents(tmp_path / "other.jsonl", DOCUMENTS)
    for inputs, changed in (([other], {}), ([corpus], {"encoder": "hashing:16"}), ([corpus], {"tokenizer": "train"})):
        if changed.get("tokenizer"):
            (tmp_path / "db" / "recipe.toml").unlink()
        for call in (plan_build, build):
            with pytest.raises(ConflictError, match="retrodb update"):
                call(tmp_path / "db", inputs, **{**options, **changed})
    assert snapshot_numbers(LocalStorage(tmp_path / "db")) == before


def test_a_tokenizer_can_be_trained_on_the_input(tmp_path: Path, corpus: Path) -> None:
    plan = plan_build(tmp_path / "db", [corpus], tokenizer="train", encoder="hashing:32", limit=10)
    assert plan.num_documents == 10
    result = build(tmp_path / "db", [corpus], tokenizer="train", encoder="hashing:32", limit=10)
    assert (result.exit_code, result.num_documents) == (0, 10)
    assert retrodb.open(tmp_path / "db").check(read_data=True).damaged == ()


def test_the_recipe_contains_the_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = build_recipe(["a/*.jsonl.zst", "b"], ["x/mmlu.test.jsonl"], {"text_field": "body", "source": None})
    assert recipe.sources["documents"].inputs == (f"{tmp_path}/a/*.jsonl.zst", f"{tmp_path}/b")
    assert recipe.testsets["mmlu"].files == (f"{tmp_path}/x/mmlu.test.jsonl",)
    assert build_recipe(["my.corpus.jsonl"], [], {}).sources.keys() == {"my"}
    with pytest.raises(UsageError, match="the same name"):
        build_recipe(["a"], ["x/test.jsonl", "y/test.jsonl"], {})
    with pytest.raises(UsageError, match="no input files"):
        build_recipe([], [], {})


def test_previews_name_the_text_field(tmp_path: Path, made_tokenizer: Path) -> None:
    path = tmp_path / "c.jsonl"
    records = [{"url": f"u{n}", "body": f"text {n} " * 50, "title": f"T{n}"} for n in range(9)]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    previews = sample(path, made_tokenizer).previews
    assert [preview.doc_id for preview in previews] == [f"u{n}" for n in range(5)]
    assert {preview.text_field for preview in previews} == {"body"}
    assert json.loads(previews[2].metadata) == {"title": "T2"}
    assert previews[2].beginning == records[2]["body"][:200]
    pairs = sample(path, made_tokenizer, key_field="title", value_field="body").previews
    assert [(pair.text_field, pair.beginning, (pair.value or "")[:6]) for pair in pairs[:1]] == [
        ("title", "T0", "text 0")
    ]
    (tmp_path / "page.md").write_text("# Page\n\ntext")
    assert sample(tmp_path / "page.md", made_tokenizer).previews[0].text_field == "markdown"


@pytest.mark.parametrize("form", ["jsonl", "jsonl.gz", "parquet"])
def test_a_long_file_is_estimated_by_its_beginning(tmp_path: Path, made_tokenizer: Path, form: str) -> None:
    texts = [made_text(n, 60) for n in range(3000)]
    path = tmp_path / f"long.{form}"
    if form == "parquet":
        pq.write_table(pa.table({"id": list(map(str, range(3000))), "text": texts}), path)
    else:
        lines = "".join(json.dumps({"id": n, "text": text}) + "\n" for n, text in enumerate(texts)).encode()
        path.write_bytes(gzip.compress(lines) if form.endswith("gz") else lines)
    found = sample(path, made_tokenizer)
    assert not found.is_whole
    assert found.num_documents == pytest.approx(3000, rel=0.15)
    assert found.text_bytes == pytest.approx(sum(map(len, texts)), rel=0.15)


def test_files_of_very_different_lengths_are_estimated_by_their_number(tmp_path: Path, made_tokenizer: Path) -> None:
    pages = [f"---\ntitle: {n}\n---\n{made_text(n, 20 if n % 10 else 900)}" for n in range(300)]
    for n, page in enumerate(pages):
        (tmp_path / f"{n:03}.md").write_text(page)
    found = sample(tmp_path, made_tokenizer, front_matter="metadata")
    assert (found.num_documents, found.is_whole) == (300, False)
    assert found.scaled(150).text_bytes == pytest.approx(sum(map(len, pages)) / 2, rel=0.15)
    assert [json.loads(preview.metadata) for preview in found.previews[:1]] == [{"title": 0}]
    assert found.previews[0].beginning.startswith(made_text(0, 3))


@settings(max_examples=30, deadline=None)
@given(sizes=st.lists(st.integers(1, 40), min_size=1, max_size=12), wanted=st.integers(0, 20))
def test_a_small_input_is_counted_exactly(
    sizes: list[int], wanted: int, tmp_path_factory: pytest.TempPathFactory, made_tokenizer: Path
) -> None:
    path = write_documents(
        tmp_path_factory.mktemp("s") / "c.jsonl", {str(n): made_text(n, w) for n, w in enumerate(sizes)}
    )
    found = sample(path, made_tokenizer)
    assert (found.num_documents, found.is_whole) == (len(sizes), True)
    assert found.text_bytes == sum(len(made_text(n, words)) for n, words in enumerate(sizes))
    assert found.scaled(wanted).num_documents == wanted
    assert found.scaled(len(sizes)) == found


def test_an_input_without_documents_is_refused_with_the_reason(tmp_path: Path, made_tokenizer: Path) -> None:
    path = tmp_path / "c.jsonl"
    path.write_text('{"id": "a", "txt": "hello"}\n')
    with pytest.raises(InputError, match=r"no-text-field.*--text-field"):
        sample(path, made_tokenizer)
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(InputError, match="no document"):
        sample(tmp_path / "empty.jsonl", made_tokenizer)
