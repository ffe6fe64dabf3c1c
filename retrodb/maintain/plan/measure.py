"""`plan --measure`: the rates of one core of this machine, from building small databases of a sample.

The same documents are built in two sizes, and a rate is the difference of the amounts over the difference of the processor times:
so what a command does once, such as starting and committing, is in no rate. A very small database is built first, for all that
is compiled and loaded once.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import orjson

from retrodb.ann.codebook import FLAT, sample_size
from retrodb.ann.exact import FixedRows
from retrodb.bench.machine import Result, cpu_name
from retrodb.config import (
    DedupParams,
    EmbedParams,
    IndexParams,
    IngestParams,
    InitParams,
    NearDuplicatesParams,
    NeighboursParams,
)
from retrodb.corpus.input_files import find_files
from retrodb.corpus.stdlib_docs import stdlib_documents
from retrodb.corpus.train_tokenizer import train_byte_bpe
from retrodb.encode.threads import available_cpus
from retrodb.engine.progress import Bar, Progress
from retrodb.errors import UsageError
from retrodb.export.export import run_export
from retrodb.export.place import export_place
from retrodb.maintain.plan.averages import averages_of
from retrodb.maintain.plan.figures import VERSION, RatesFile
from retrodb.maintain.plan.join_choice import scanned_products
from retrodb.maintain.plan.request import PlanRequest, hashing_dimension, shape_of
from retrodb.maintain.plan.work import assignment_products, training_components, training_products
from retrodb.maintain.update.sample import read_heads
from retrodb.stages.context import Context
from retrodb.stages.dedup.command import run_dedup
from retrodb.stages.dedup.near_duplicates import run_near_duplicates
from retrodb.stages.embed.command import run_embed
from retrodb.stages.embed.space_encoder import EncoderHardware, load_encoder
from retrodb.stages.index.command import run_index
from retrodb.stages.index.operating_point import SAMPLE_ROWS, default_nprobe
from retrodb.stages.ingest.command import run_ingest
from retrodb.stages.init import run_init
from retrodb.stages.neighbours.command import NeighboursResult, run_neighbours
from retrodb.store.open_storage import open_storage

_CHARS, _DOCUMENTS = 7 << 20, 1 << 16  # of the sample, which is one shard
_FIRST = 64  # documents that are built before anything is timed
_SMALL = 4  # the smaller database has one of so many documents
_VECTORS_PER_LIST = 128
_FEW, _MANY = 0.6, NeighboursParams.recall  # recall of two tables, which differ in the pairs that are scanned
_TEST_ITEMS, _ITEM_CHARS = 200, 2000
_PRODUCT_LISTS, _PRODUCT_ROWS = 1024, 16_384
_EMBED_S = 6.0  # of processor time, to measure a model
_LEAST_CHARS = 1 << 20  # of the sample: 4,000 chunks
_EMBEDDED = 2048  # chunks that a model is measured on, again and again
_ROUNDS = 2  # in which both databases are built: the least time of a stage counts, for what else runs makes it longer
_BY_TEXT = ("ingest", "dedup", "near-duplicates")
_LEAST_S = 1e-3  # where noise is more than what is measured
_STAGES = ("ingest", "dedup", "near-duplicates", "embed", "flat", "index", "few", "many", "export")


@dataclass(frozen=True)
class _Costs:
    """Amounts and processor seconds of the stages of one database."""

    text_bytes: int
    vectors: int
    lists: int
    nprobe: tuple[int, int]  # of the two tables
    seconds: Mapping[str, float]

    def best(self, other: _Costs) -> _Costs:
        """The least times of two rounds."""
        seconds = {name: min(spent, other.seconds[name]) for name, spent in self.seconds.items()}
        return replace(self, seconds=seconds)


def measure_stages(
    progress: Progress,
    inputs: Sequence[str] = (),
    *,
    encoder: str = InitParams.encoder,
    dimension: int | None = None,
    tokenizer: str | None = None,
    folder: Path | None = None,
    device: str = "cpu",
) -> RatesFile:
    """Measure every stage on documents of the input, in about a minute; the result is not written.

    Vectors for the index and the join are those of a hashing encoder with as many dimensions. How many lists a row has to read is
    measured for a hashing encoder only; for a model the table of real text is used.

    Args:
        inputs: whose first documents are the sample; without any, the documentation of the standard library.
        tokenizer: None trains one on the sample.
        folder: of the temporary databases; None takes the system's.

    Raises:
        UsageError: the sample is too small, or nothing is known of the encoder.
        InputError: the inputs have no document.
    """
    shape = shape_of(PlanRequest(1, encoder=encoder, dimension=dimension))
    sample, texts = _sample(inputs)
    is_hashing = hashing_dimension(encoder) is not None
    steps = (1 + 2 * _ROUNDS) * len(_STAGES) + (0 if is_hashing else 1)
    with (
        TemporaryDirectory(dir=folder, prefix="retrodb-plan-") as temporary,
        progress.stage("plan --measure", steps, "") as bar,
    ):
        place = Path(temporary)
        if tokenizer is None:
            tokenizer = str(place / "tokenizer.json")
            train_byte_bpe(texts).save(Path(tokenizer))
        costs: dict[str, _Costs] = {}
        for number, (name, documents) in enumerate(
            (("first", texts[:_FIRST]), *(_ROUNDS * (("small", texts[::_SMALL]), ("large", texts))))
        ):
            built = _Build(place / f"{number}", tokenizer, f"hashing:{shape.dimension}", bar)
            measured = built.costs(documents)
            costs[name] = measured.best(costs.get(name, measured))
        small, large = costs["small"], costs["large"]
        context = built.context
        averages = averages_of(context.view(), f"measured on {sample}")
        rates = _rates(small, large, shape.dimension)
        if not is_hashing:
            rates["embed"] = _model_rate(context, EmbedParams(encoder), device)
            bar.advance(1)
    return RatesFile(
        version=VERSION,
        measured_at=f"{datetime.now(UTC):%Y-%m-%d}",
        machine=f"one core of {available_cpus()}, {cpu_name()}",
        sample=sample,
        encoder=encoder,
        dimension=shape.dimension,
        command_s=_command_s(),
        probes_factor=large.nprobe[1] / default_nprobe(large.lists) if is_hashing else None,
        rates=rates,
        averages=averages,
    )


def _sample(inputs: Sequence[str]) -> tuple[str, list[str]]:
    """A description, and texts."""
    if inputs:
        heads = read_heads(find_files(inputs).files, IngestParams("sample"), documents=_DOCUMENTS, chars=_CHARS)
        texts = [document.text for head in heads for document in head.documents]
        sample = f"{len(texts):,} documents of {', '.join(Path(path).name for path in inputs)}"
    else:
        texts = [text for _, text in stdlib_documents()]
        sample = f"{len(texts):,} documents of the standard library's documentation"
    if (size := sum(map(len, texts))) < _LEAST_CHARS:
        raise UsageError(
            f"a sample of {size:,} characters is too small to measure",
            remedy=f"Name more input with --sample: at least {_LEAST_CHARS:,} characters, better {_CHARS:,}.",
        )
    return sample, texts


class _Build:
    """A database of the sample, and the processor time of each stage. It has one worker, which is this process."""

    def __init__(self, folder: Path, tokenizer: str, encoder: str, bar: Bar) -> None:
        self._folder, self._bar = folder, bar
        folder.mkdir(parents=True)
        self.context = Context(open_storage(str(folder / "db")))
        run_init(self.context, InitParams(tokenizer, encoder=encoder))
        self._seconds: dict[str, float] = {}

    def costs(self, texts: Sequence[str]) -> _Costs:
        """Build the texts through all stages."""
        context = self.context
        # The first words in reverse order: texts as those of test sets, and equal to none.
        items = [" ".join(reversed(text[:_ITEM_CHARS].split())) for text in texts[:_TEST_ITEMS]]
        testset = self._write("test.jsonl", items)
        source, ingest = self._write("documents.jsonl", texts), IngestParams("sample", max_reject_rate=1.0)
        self._timed("ingest", lambda: run_ingest(context, [str(source)], ingest))
        self._timed("dedup", lambda: run_dedup(context, [testset], DedupParams(), name="test"))
        self._timed("near-duplicates", lambda: run_near_duplicates(context, NearDuplicatesParams()))
        embedded = self._timed("embed", lambda: run_embed(context, {}, EncoderHardware("cpu", threads=1)))
        self._timed("flat", lambda: run_index(context, IndexParams(factory=FLAT)))
        factory = IndexParams(factory=_factory(max(4, embedded.num_chunks // _VECTORS_PER_LIST)))
        indexed = self._timed("index", lambda: run_index(context, factory, retrain=True))
        few, many = self._table("few", _FEW), self._table("many", _MANY)
        self._timed(
            "export", lambda: run_export(context, export_place(self._folder / "out"), to="arrays", table="many")
        )
        return _Costs(
            text_bytes=sum(len(text.encode()) for text in texts),
            vectors=indexed.num_vectors,
            lists=max(1, indexed.num_lists),
            nprobe=(few.nprobe or 1, many.nprobe or 1),
            seconds=self._seconds,
        )

    def _table(self, name: str, recall: float) -> NeighboursResult:
        params = NeighboursParams(recall=recall)
        return self._timed(name, lambda: run_neighbours(self.context, params, table=name))

    def _timed(self, name: str, work: Callable[[], Result]) -> Result:
        started = time.process_time()
        result = work()
        self._seconds[name] = time.process_time() - started
        self._bar.advance(1)
        return result

    def _write(self, name: str, texts: Sequence[str]) -> Path:
        path = self._folder / name
        path.write_bytes(b"".join(orjson.dumps({"id": str(i), "text": text}) + b"\n" for i, text in enumerate(texts)))
        return path


def _rates(small: _Costs, large: _Costs, dim: int) -> dict[str, float]:
    """Rates by name: amounts over processor seconds, between the two databases."""
    per_product = 1 / _products_per_s(dim)
    grown = _Growth(small, large)
    rates = {name: grown.rate(lambda c: c.text_bytes, _seconds_of(name)) for name in _BY_TEXT}
    rates |= {name: grown.rate(lambda c: c.vectors, _seconds_of(name)) for name in ("embed", "export")}
    rates["index"] = grown.rate(lambda c: c.vectors * dim, _seconds_of("flat"))
    rates["products"] = 1 / per_product
    few, many = (_scanned(large, nprobe, dim) for nprobe in large.nprobe)
    spent = large.seconds["many"] - large.seconds["few"]
    rates["scan"] = (many - few) / spent if many > few and spent > 0 else many / large.seconds["many"]

    def training_s(costs: _Costs) -> float:
        spent = costs.vectors * dim / rates["index"] + _index_products(costs, dim) * per_product
        return costs.seconds["index"] - spent

    def rows_s(costs: _Costs) -> float:
        """Of the table with few lists: without its scan, its lists, and the exact search of its sample."""
        compared = (costs.lists + SAMPLE_ROWS) * costs.vectors * dim
        return costs.seconds["few"] - _scanned(costs, costs.nprobe[0], dim) / rates["scan"] - compared * per_product

    rates["training"] = grown.rate(lambda c: training_components(_factory(c.lists), dim, _sample_size(c)), training_s)
    rates["neighbours"] = grown.rate(lambda c: c.vectors, rows_s)
    return rates


def _seconds_of(name: str) -> Callable[[_Costs], float]:
    return lambda costs: costs.seconds[name]


@dataclass(frozen=True)
class _Growth:
    """Two databases, of which the second is larger."""

    small: _Costs
    large: _Costs

    def rate(self, amount: Callable[[_Costs], float], seconds: Callable[[_Costs], float]) -> float:
        """More amount for more time; that of the large database alone where the time did not grow."""
        spent, grown = seconds(self.large) - seconds(self.small), amount(self.large) - amount(self.small)
        if spent > 0 and grown > 0:
            return grown / spent
        return amount(self.large) / max(_LEAST_S, seconds(self.large))


def _scanned(costs: _Costs, nprobe: int, dim: int) -> float:
    """What the scan of a table amounts to; the index has one part."""
    visits = float(costs.vectors) * nprobe
    return scanned_products(dim, visits * costs.vectors / costs.lists, visits)


def _sample_size(costs: _Costs) -> int:
    return min(costs.vectors, sample_size(_factory(costs.lists)))


def _index_products(costs: _Costs, dim: int) -> float:
    factory = _factory(costs.lists)
    trained = training_products(factory, dim, _sample_size(costs))
    return trained + assignment_products(factory, dim, costs.vectors, 1)


def _factory(num_lists: int) -> str:
    """With groups, in which large codebooks are trained."""
    return f"IVF{num_lists}(IVF{max(2, round(num_lists**0.5))},Flat),SQ8"


def _products_per_s(dim: int) -> float:
    """Float products of one core when vectors find their nearest lists."""
    random = np.random.default_rng(0)
    rows, lists = (random.standard_normal((count, dim), dtype=np.float32) for count in (_PRODUCT_ROWS, _PRODUCT_LISTS))
    centroids = FixedRows.of(lists)
    centroids.nearest(rows[:64], 1, "inner_product", 1)
    started = time.process_time()
    centroids.nearest(rows, 1, "inner_product", 1)
    return _PRODUCT_ROWS * _PRODUCT_LISTS * dim / (time.process_time() - started)


def _model_rate(context: Context, params: EmbedParams, device: str) -> float:
    """Chunks a second and core of a model, on chunks of the sample."""
    encoder, view = load_encoder(params, EncoderHardware(device, threads=1)), context.view()
    ids = np.random.default_rng(0).permutation(view.snapshot.next_chunk).astype(np.int64)
    texts = [text for text in view.chunks.texts(np.sort(ids[:_EMBEDDED])) if text]
    encoder.encode_passages(texts[:8])  # the first batch is slow
    started, count = time.process_time(), 0
    while time.process_time() - started < _EMBED_S:
        encoder.encode_passages(texts[count % len(texts) :][:64])
        count += len(texts[count % len(texts) :][:64])
    return count / (time.process_time() - started)


def _command_s() -> float:
    """Processor time to start a command, without its work."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [sys.executable, "-c", "import retrodb.stages.neighbours.command, retrodb.stages.dedup.command"], check=True
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
