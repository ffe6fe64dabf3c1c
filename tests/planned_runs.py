"""Real builds to compare a plan with: the commands of a first build, what they cost, and the bytes that they leave."""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import orjson
import pyarrow.parquet as pq
from process_cost import ProcessCost, run_measured
from real_corpora import content, corpus

import retrodb
from retrodb.database import plan_database
from retrodb.maintain.plan.command import PipelinePlan

PROGRAM = [sys.executable, "-c", "from retrodb_cli.main import run; run()"]
MEMORY = "4GiB"
TEST_ITEMS = 500
COMPARED_FRACTION = 0.01  # kinds of files with less of the bytes are not compared
COMPARED_S = 3.0  # stages that take less are not compared


@dataclass(frozen=True)
class RealBuild:
    """What a build took."""

    tokens: int
    costs: Mapping[str, ProcessCost]  # by stage
    stored: Mapping[str, int]  # bytes by kind of file; `export` is the folder of the export


@dataclass(frozen=True)
class Comparison:
    """A predicted and a real value."""

    name: str
    predicted: float
    real: float

    @property
    def ratio(self) -> float:
        """Predicted over real."""
        return self.predicted / max(self.real, 1e-9)


def real_documents() -> list[tuple[str, str]]:
    """Ids and texts of Wikipedia and of statutes, mixed; skips the test where they are not there."""
    documents = []
    for line in content("wikipedia-en.jsonl.zst").splitlines():
        record = orjson.loads(line)
        documents.append((f"w{record['id']}", f"{record['title']}\n\n{record['text']}"))
    table = pq.read_table(corpus("dc-law.parquet"))
    texts = zip(table["id"].to_pylist(), table["text"].to_pylist(), strict=True)
    documents += [(f"l{number}", text) for number, text in texts]
    random.Random(0).shuffle(documents)
    return documents


def write_texts(path: Path, documents: Sequence[tuple[str, str]], num_bytes: float) -> Path:
    """JSON Lines of the first documents with so much text."""
    written = 0
    with path.open("wb") as file:
        for doc_id, text in documents:
            if written >= num_bytes:
                break
            file.write(orjson.dumps({"id": doc_id, "text": text}) + b"\n")
            written += len(text.encode())
    return path


def build(folder: Path, documents: Path, tokenizer: str, encoder: str, *, limit_s: float = 3600) -> RealBuild:
    """Run the commands of a first build with one worker each, after `init`."""
    db, out, testset = folder / "db", folder / "out", folder / "testset.jsonl"
    folder.mkdir(parents=True, exist_ok=True)
    with documents.open("rb") as lines, testset.open("wb") as items:
        for _, line in zip(range(TEST_ITEMS), lines, strict=False):
            words = orjson.loads(line)["text"].split()
            items.write(orjson.dumps({"id": "t", "text": " ".join(reversed(words[:200]))}) + b"\n")
    retrodb.create(db, tokenizer=tokenizer, encoder=encoder)
    commands = {
        "ingest": ["ingest", db, documents, "--source", "real"],
        "dedup": ["dedup", db, "--against", testset, "--name", "t"],
        "near-duplicates": ["dedup", db, "--near-duplicates"],
        "embed": ["embed", db],
        "index": ["index", db],
        "neighbours": ["neighbours", db],
        "export": ["export", db, out, "--to", "arrays"],
    }
    environment = {**os.environ, "RETRODB_CACHE_DIR": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    costs = {}
    for stage, command in commands.items():
        words = [*map(str, command), "--workers", "1", "--memory", MEMORY]
        costs[stage] = run_measured([*PROGRAM, *words], environment, limit_s)
        assert not costs[stage].error, (stage, costs[stage].error)
    view = retrodb.open(db).view()
    sizes = {kind: size for kind, (_, size) in view.manifest.size_by_kind().items()}
    sizes |= {"blocks": _size_of(db / "blocks"), "export": _size_of(out)}
    return RealBuild(retrodb.open(db).stats().num_tokens, costs, sizes)


def _size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def plan_of(real: RealBuild, encoder: str, rates: Path) -> PipelinePlan:
    """The plan of the same build, for which only the number of its tokens is known."""
    return plan_database(tokens=real.tokens, encoder=encoder, rates=rates, worker_memory=4 << 30)


def compared_bytes(plan: PipelinePlan, real: RealBuild) -> Iterator[Comparison]:
    """Every kind of file with a relevant part of the bytes, and all that are planned together."""
    planned = {kind: size for kind, size in plan.stored_by_kind.items() if kind in real.stored}
    total = sum(real.stored[kind] for kind in planned)
    for kind, size in planned.items():
        if real.stored[kind] >= COMPARED_FRACTION * total:
            yield Comparison(kind, size, real.stored[kind])
    yield Comparison("all", sum(planned.values()), total)


def compared_times(plan: PipelinePlan, real: RealBuild) -> Iterator[Comparison]:
    """Processor seconds of every stage."""
    for stage in plan.stages:
        yield Comparison(stage.stage, 3600 * stage.cpu_hours, real.costs[stage.stage].cpu_s)


def compared_memory(plan: PipelinePlan, real: RealBuild) -> Iterator[Comparison]:
    """Anonymous memory of every stage at its peak."""
    for stage in plan.stages:
        yield Comparison(stage.stage, stage.memory_bytes, real.costs[stage.stage].peak_bytes)
