"""Plans are pure functions of a request and of figures with origins; wrong requests name the part that is wrong."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import click
import pytest
from made_documents import made_text, write_documents

from retrodb.ann.codebook import choose_factory
from retrodb.database import Database, measure_plan_rates, plan_database
from retrodb.errors import ConfigError, InputError, MissingStep, UsageError
from retrodb.maintain.plan.command import PipelinePlan, StageForecast, plan_pipeline
from retrodb.maintain.plan.figures import VERSION, RatesFile, measured_figures, read_rates_file, write_rates
from retrodb.maintain.plan.gpus import GPUS, embed_rate, join_rate
from retrodb.maintain.plan.join_choice import exchanged_row_bytes, ranges_per_row
from retrodb.maintain.plan.prices import PlanPrices, parse_prices
from retrodb.maintain.plan.request import PlanRequest
from retrodb.maintain.plan.shipped import SHIPPED_AVERAGES, SHIPPED_RATES, shipped_figures
from retrodb.store.storage import LocalStorage
from retrodb_cli.main import main
from retrodb_cli.option_types import count

Make = Callable[..., Database]
MINILM = "sentence-transformers/all-MiniLM-L6-v2"


def plan(tokens: int = 10**10, encoder: str = MINILM, **changes: object) -> PipelinePlan:
    return plan_pipeline(PlanRequest(tokens, encoder=encoder, **changes), shipped_figures(encoder))  # type: ignore[arg-type]


def stage(planned: PipelinePlan, name: str) -> StageForecast:
    return next(each for each in planned.stages if each.stage == name)


def stored(path: Path, **changes: object) -> Path:
    rates = {name: 2 * rate.per_s for name, rate in SHIPPED_RATES.items()} | {"embed": 1000.0}
    measured = RatesFile(
        VERSION, "2026-01-02", "a machine", "texts", "hashing:64", 64, 1.0, 2.0, rates, SHIPPED_AVERAGES
    )
    write_rates(path, replace(measured, **changes))  # type: ignore[arg-type]
    return path


@pytest.mark.parametrize(
    ("text", "number"),
    [("1e12", 10**12), ("1T", 10**12), ("1.5T", 15 * 10**11), ("300B", 3 * 10**11), ("20M", 2 * 10**7), ("5k", 5000),
     ("1,000,000", 10**6), ("64", 64), ("1E+9", 10**9), ("300b", 3 * 10**11)],
)  # fmt: skip
def test_numbers_of_tokens_are_read_as_people_write_them(text: str, number: int) -> None:
    assert count(text) == number


@pytest.mark.parametrize("text", ["0", "-1", "0.5", "nan", "inf", "1e40", "1X", "", "1e", "T", "1 000", "1e12T"])
def test_what_is_no_number_of_tokens_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter, match="not a number of at least 1"):
        count(text)


def test_prices_are_read_and_units_are_in_their_names() -> None:
    assert parse_prices("gpu-hour=2.5, cpu-hour=0.04") == PlanPrices(gpu_hour=2.5, cpu_hour=0.04)


@pytest.mark.parametrize(
    ("text", "named"),
    [("gpu-hours=2", "Did you mean 'gpu-hour'"), ("cpu-hour", "part 'cpu-hour'"), ("cpu-hour=-1", "'-1' is not a price"),
     ("cpu-hour=1,cpu-hour=2", "two prices"), ("cpu-hour=nan", "not a price"), ("cpu-hour=1e308", "0 to 1e9"),
     ("cpu-hour=1,", "NAME=NUMBER"), ("", "NAME=NUMBER"), ("x=1", "unknown price 'x'")],
)  # fmt: skip
def test_a_wrong_price_is_named(text: str, named: str) -> None:
    with pytest.raises(UsageError) as error:
        parse_prices(text)
    assert named in str(error.value)


@pytest.mark.parametrize(
    ("changes", "named"),
    [({"gpu": "h1000", "gpus": 1}, "Known are: h100"), ({"gpus": 2}, "without a type"), ({"gpu": "h100"}, "without a number"),
     ({"tokens": 1}, "less than a chunk"), ({"tokens": 10**17}, "at most"), ({"k": 0}, "--k 0"), ({"workers": 0}, "--workers 0"),
     ({"route_ranges": 1}, "at least 2 ranges"), ({"store": "tape"}, "local, s3"), ({"encoder": "x/y"}, "all-MiniLM-L6-v2"),
     ({"encoder": "hashing:0"}, "hashing:256"), ({"encoder": "hashing:x"}, "hashing:256"), ({"encoder": ""}, "hashing:DIM"),
     ({"encoder": "hashing:65537"}, "65,536"), ({"encoder": "hashing:64", "dimension": 7}, "Leave out --dimension"),
     ({"encoder": "hashing:x", "dimension": 7}, "hashing:256"), ({"chunk_tokens": 4097}, "1 to 4,096"),
     ({"tokens": 10**14, "chunk_tokens": 1}, "at most 4,000,000 shards"), ({"worker_memory": 1}, "at least 1MiB"),
     ({"tokens": 10**4, "route_ranges": 4}, "1 list, which cannot be split. Leave it out"),
     ({"route_ranges": 10**9}, "Give at most 262144")],
)  # fmt: skip
def test_an_invalid_request_is_refused_with_a_remedy(changes: dict[str, object], named: str) -> None:
    with pytest.raises(UsageError) as error:
        plan(**changes)  # type: ignore[arg-type]
    assert named in str(error.value)


def test_an_unsupported_factory_is_refused() -> None:
    with pytest.raises(ConfigError, match="HNSW32"):
        plan(factory="HNSW32")


def test_the_factory_is_the_one_that_index_chooses() -> None:
    for tokens in (10**6, 10**7, 10**9, 10**12):
        planned = plan(tokens)
        assert planned.factory == choose_factory(planned.num_vectors, 384, 8 << 30)


@pytest.mark.parametrize("name", ["ingest", "dedup", "embed", "export"])
def test_twice_the_tokens_take_twice_the_hours_and_bytes(name: str) -> None:
    one, two = (stage(plan(tokens), name) for tokens in (10**11, 2 * 10**11))
    for field in ("cpu_hours", "read_bytes", "written_bytes", "stored_bytes", "num_tasks"):
        if getattr(one, field):
            assert getattr(two, field) / getattr(one, field) == pytest.approx(2, rel=0.02), field


@pytest.mark.parametrize("changes", [{}, {"workers": 64}, {"gpu": "h100", "gpus": 8, "workers": 64, "store": "s3"}])
def test_every_hour_and_byte_of_a_plan_adds_up(changes: dict[str, object]) -> None:
    planned = plan(
        10**12, prices=PlanPrices(cpu_hour=1, gpu_hour=2, put_1000=3, get_1000=0.1, transfer_gb=0.01), **changes
    )
    for each in planned.stages:
        of_rates = {unit: sum(rate.hours for rate in each.rates if rate.unit_of == unit) for unit in ("core", "GPU")}
        assert of_rates["core"] <= each.cpu_hours <= of_rates["core"] + each.serial_s / 3600 + 1e-9, each.stage
        assert each.gpu_hours == pytest.approx(of_rates["GPU"])
    for name in ("cpu_hours", "gpu_hours", "wall_hours", "serial_s", "stored_bytes", "read_bytes", "num_files", "cost"):
        assert getattr(planned.total, name) == pytest.approx(sum(getattr(each, name) for each in planned.stages)), name
    assert planned.total.stored_bytes == sum(planned.stored_by_kind.values())
    assert planned.total.memory_bytes == max(each.memory_bytes for each in planned.stages)


def test_a_factory_that_too_few_vectors_train_is_flat_as_in_index() -> None:
    planned = plan(10**4, factory="IVF4096,SQ8")
    assert planned.factory == "Flat"
    assert planned.factory_note.startswith("IVF4096,SQ8 needs at least ")
    assert plan(factory="IVF4096,SQ8").factory_note == ""


def test_more_workers_shorten_the_time_and_not_the_work() -> None:
    one, many = plan(workers=2), plan(workers=200)
    assert many.total.cpu_hours == pytest.approx(one.total.cpu_hours)
    assert many.total.wall_hours < one.total.wall_hours / 20
    assert many.total.wall_hours > sum(each.serial_s for each in many.stages) / 3600


def test_every_rate_says_where_it_is_from() -> None:
    rates = [rate for each in plan(gpu="a100", gpus=8).stages for rate in each.rates]
    assert all(rate.origin.startswith(("shipped: 2026-", "estimate, not measured: ")) for rate in rates)
    assert {rate.unit_of for rate in rates if rate.name in ("embed", "scan")} == {"GPU"}
    assert [rate.origin.startswith("estimate") for rate in rates if rate.unit_of == "GPU"] == [True, True]


def test_only_what_was_measured_on_a_gpu_is_no_estimate() -> None:
    encoder = "all-MiniLM-L6-v2"
    embeds = [gpu for gpu in GPUS if (rate := embed_rate(gpu, encoder)) and not rate.origin.startswith("estimate")]
    assert embeds == ["h100"]
    assert [gpu for gpu in GPUS if not join_rate(gpu).origin.startswith("estimate")] == ["h100", "h200"]
    assert embed_rate("h100", "hashing:64") is None


def test_costs_are_given_where_all_prices_are() -> None:
    hours = plan(gpu="h100", gpus=8, prices=PlanPrices(cpu_hour=1))
    assert stage(hours, "ingest").cost == pytest.approx(stage(hours, "ingest").cpu_hours, abs=0.01)
    assert stage(hours, "embed").cost is None
    assert hours.total.cost is None
    both = plan(gpu="h100", gpus=8, prices=PlanPrices(cpu_hour=1, gpu_hour=10, storage_gb_month=0.1))
    assert both.total.cost == pytest.approx(both.total.cpu_hours + 10 * both.total.gpu_hours, abs=0.1)
    assert both.storage_cost_per_month == pytest.approx(sum(both.stored_by_kind.values()) / 1e10, rel=0.01)


def test_a_plan_says_where_a_task_needs_more_memory_than_a_worker_has() -> None:
    small, large = plan(10**12, worker_memory=4 << 30), plan(10**12, worker_memory=64 << 30)
    assert not small.total.fits_memory
    assert not stage(small, "index").fits_memory  # a process has the codebook of 4 million lists
    assert large.total.fits_memory


# Ranges, ranges of a row, lists of a row, dimensions, neighbours of a row, bytes of a row: 2026-11-28-list-ranges.md and
# 2026-11-28-routing.md.
EXCHANGED = [
    (3.92, 56, 64, 10, 1604), (12.0, 56, 64, 10, 3426), (24.56, 56, 64, 10, 6326), (3.89, 95, 64, 10, 1795),
    (10.67, 95, 64, 10, 3273), (22.46, 95, 64, 10, 5800), (5.13, 30, 384, 10, 4857), (8.71, 30, 384, 10, 8208),
    (2.41, 73, 384, 10, 2689), (4.89, 51, 384, 10, 5068), (1.96, 51, 384, 10, 2203), (3.23, 51, 384, 10, 3340),
]  # fmt: skip


@pytest.mark.parametrize(("per_row", "nprobe", "dimension", "width", "measured"), EXCHANGED)
def test_exchanged_bytes_are_those_that_joins_had(
    per_row: float, nprobe: int, dimension: int, width: int, measured: int
) -> None:
    assert exchanged_row_bytes(dimension, nprobe, width, per_row) == pytest.approx(measured, rel=0.1)


def test_a_row_is_sent_to_more_ranges_where_there_are_more_and_to_fewer_with_a_routing() -> None:
    counts = (1, 2, 4, 16, 64, 100, 256)
    plain, routed = ([ranges_per_row(count, 93, is_routed=routing) for count in counts] for routing in (False, True))
    assert plain == sorted(plain)
    assert plain[0] == routed[0] == 1
    assert all(few < many for few, many in zip(routed[1:], plain[1:], strict=True))


# Ranges, lists of a row, whether vectors have topics, whether rows are routed, ranges of a row: the same files, and a simulation
# of 16,384 lists.
SPREAD = [
    (16, 30, True, False, 5.13), (64, 30, True, False, 8.71), (64, 113, True, False, 13.4), (256, 113, True, False, 25.5),
    (16, 30, True, True, 2.41), (64, 30, True, True, 4.89), (4, 56, False, False, 3.92), (16, 56, False, False, 12.0),
    (64, 56, False, False, 24.56), (16, 125, False, False, 15.4), (64, 95, False, False, 22.46),
]  # fmt: skip


@pytest.mark.parametrize(("ranges", "nprobe", "has_topics", "is_routed", "measured"), SPREAD)
def test_rows_are_sent_to_as_many_ranges_as_in_joins(
    ranges: int, nprobe: int, has_topics: bool, is_routed: bool, measured: float
) -> None:
    planned = ranges_per_row(ranges, nprobe, is_routed=is_routed, has_topics=has_topics)
    assert planned == pytest.approx(measured, rel=0.25)


def test_measured_rates_replace_shipped_ones(tmp_path: Path) -> None:
    measured = read_rates_file(stored(tmp_path / "rates.json"))
    figures = measured_figures(shipped_figures("hashing:64"), measured, "hashing:64")
    assert figures.rates["ingest"].per_s == 2 * SHIPPED_RATES["ingest"].per_s
    assert figures.rates["embed"].per_s == 1000.0
    assert figures.rates["ingest"].origin == "measured 2026-01-02, a machine"
    other = measured_figures(shipped_figures(MINILM), measured, MINILM)
    assert other.rates["embed"] == shipped_figures(MINILM).rates["embed"]  # it was measured with another encoder
    assert other.probes_factor == 1.0


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"version": 9}, "version 9"),
        ({"rates": {"speed": 1.0}}, "'speed'"),
        ({"rates": {"ingest": 0.0}}, "'ingest'"),
        ({"rates": {"ingest": 1e-320}}, "'ingest'"),
        ({"command_s": -1.0}, "'command_s'"),
        ({"dimension": 0}, "'dimension'"),
        ({"probes_factor": 0.0}, "'probes_factor'"),
        ({"probes_factor": 1e300}, "'probes_factor'"),
    ],
)
def test_a_file_of_other_rates_is_refused(change: dict[str, object], named: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=named):
        read_rates_file(stored(tmp_path / "rates.json", **change))


@pytest.mark.parametrize(
    ("name", "figure"),
    [("tokens_per_document", 0.0), ("text_bytes_per_token", -1.0), ("chunks_bytes_per_token", 0.0), ("documents_bytes", 1e308),
     ("token_bytes", 0), ("pair_bytes", -1.0), ("duplicate_fraction", 2.0)],
)  # fmt: skip
def test_averages_that_no_text_has_are_refused(name: str, figure: float, tmp_path: Path) -> None:
    averages = replace(SHIPPED_AVERAGES, **{name: figure})  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=f"'{name}'"):
        read_rates_file(stored(tmp_path / "rates.json", averages=averages))


def test_what_is_no_file_of_rates_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("not JSON")
    with pytest.raises(ConfigError, match=r"text: no file of rates .*plan --measure"):
        read_rates_file(tmp_path / "text")
    with pytest.raises(InputError, match="cannot be read"):
        read_rates_file(tmp_path / "none")


def test_an_unknown_encoder_needs_a_measured_rate(tmp_path: Path) -> None:
    with pytest.raises(MissingStep, match="plan --measure"):
        plan_database(tokens=10**9, encoder="some/model", dimension=768)
    rates = stored(tmp_path / "rates.json", encoder="some/model", dimension=768)
    assert plan_database(tokens=10**9, encoder="some/model", rates=rates).dimension == 768


def test_the_averages_of_a_database_give_its_own_size(make_database: Make) -> None:
    database = make_database({f"d{number}": made_text(number, 400) for number in range(40)})
    stats = database.stats()
    planned = plan_database(database.path, tokens=stats.num_tokens)
    assert planned.num_documents == stats.num_documents
    assert planned.num_chunks == pytest.approx(stats.num_chunks, rel=0.05)
    sizes = {kind.kind: kind.size_bytes for kind in stats.files}
    assert planned.stored_by_kind["chunks"] == pytest.approx(sizes["chunks"], rel=0.01)
    assert planned.stored_by_kind["tokens"] == pytest.approx(sizes["tokens"], rel=0.05)
    assert planned.encoder == "hashing:32"
    assert planned.store == "local"
    database.embed()
    assert plan_database(database.path, tokens=10**9).dimension == 32


def test_a_plan_is_for_the_store_of_the_database(
    make_database: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_database({f"d{number}": made_text(number, 400) for number in range(4)}).path
    monkeypatch.setattr(LocalStorage, "url", property(lambda storage: "s3://bucket/db"))
    assert plan_database(path, tokens=10**9).store == "s3"
    assert plan_database(path, tokens=10**9, store="local").store == "local"


def test_an_empty_database_has_no_averages(make_database: Make) -> None:
    with pytest.raises(MissingStep, match="no documents"):
        plan_database(make_database({}).path, tokens=10**9)


def test_the_command_prints_a_plan_and_one_object(capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "plan",
        "--tokens",
        "1T",
        "--gpu",
        "h100",
        "--gpus",
        "64",
        "--workers",
        "512",
        "--price",
        "gpu-hour=2,cpu-hour=0.1",
    ]
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert "1,000,000,000,000 tokens" in shown
    assert "2026-11-27-embed-gpu.md" in shown
    assert main([*words, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["message_type"] == "pipeline_plan"
    assert [each["stage"] for each in printed["stages"]][:2] == ["ingest", "dedup"]
    assert printed["total"]["cost"] > 0


@pytest.mark.parametrize("columns", [80, 200])
@pytest.mark.parametrize("words", [[], ["--gpu", "h100", "--gpus", "64", "--price", "cpu-hour=1,gpu-hour=2"]])
def test_no_line_is_wider_than_the_terminal(
    columns: int, words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    assert main(["plan", "--tokens", "1T", "--workers", "512", *words]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert max(map(len, shown)) <= columns
    numbers = [line.split()[0] for line in shown if line.startswith("[")]
    assert numbers == [f"[{number}]" for number in range(1, len(numbers) + 1)]
    assert any("(2026-11-28-plan.md)" in line for line in shown)


@pytest.mark.parametrize(
    ("words", "note"),
    [([], "no cost without the price of a cpu"), (["--gpu", "h100", "--gpus", "1", "--price", "cpu-hour=1"], "of a gpu-hour"),
     (["--store", "s3", "--price", "cpu-hour=1,put-1000=1"], "Requests are counted once"),
     (["--factory", "IVF99999999,SQ8"], "using Flat"), (["--worker-memory", "1MiB"], "More memory than a worker has")],
)  # fmt: skip
def test_a_plan_says_what_it_lacks(words: list[str], note: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--tokens", "10B", *words]) == 0
    assert note in " ".join(capsys.readouterr().out.split())


def test_the_readme_has_the_figures_of_its_command() -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    planned = plan(
        10**12, gpu="h100", gpus=64, workers=512, worker_memory=40 << 30, prices=PlanPrices(gpu_hour=2.5, cpu_hour=0.04)
    )
    assert f"in {planned.num_shards:,} shards" in readme
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in readme.splitlines() if line.startswith("| ")]
    for each in planned.stages:
        row = next(row for row in rows if len(row) == 8 and row[0].partition(",")[0].partition(" as ")[0] == each.stage)
        core, gpu, wall, memory, *sizes = (float(re.sub("[^0-9.]", "", cell) or "nan") for cell in row[1:7])
        for shown, exact in (
            (core, each.cpu_hours),
            (gpu, each.gpu_hours),
            (wall, each.wall_hours),
            (memory, each.memory_bytes / 1e9),
        ):
            assert math.isnan(shown) or shown == pytest.approx(exact, rel=0.05, abs=0.05), row
        for shown, exact_bytes in zip(sizes, (each.stored_bytes, each.shuffled_bytes), strict=True):
            assert math.isnan(shown) or shown == pytest.approx(exact_bytes / 1e12, rel=0.02, abs=0.05), row


@pytest.mark.parametrize(
    "words",
    [[], ["--tokens", "0"], ["--tokens", "1T", "--gpu", "tpu", "--gpus", "1"], ["--tokens", "1T", "--price", "x=1"],
     ["--tokens", "1T", "--sample", "x"], ["--measure", "x", "--rates", "y"]],
)  # fmt: skip
def test_the_command_refuses_what_is_invalid(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *words]) == 2
    assert capsys.readouterr().err


def test_a_sample_that_is_too_small_is_refused_before_any_work(tmp_path: Path) -> None:
    few = write_documents(tmp_path / "few.jsonl", {"d": made_text(0, 100)})
    with pytest.raises(UsageError, match=r"characters is too small to measure.*--sample"):
        measure_plan_rates(tmp_path / "rates.json", sample=[few], encoder="hashing:32")
    assert not (tmp_path / "rates.json").exists()


def test_rates_that_cannot_be_written_are_not_measured(tmp_path: Path) -> None:
    for out in (tmp_path, tmp_path / "no" / "rates.json", Path("/proc/rates.json")):
        with pytest.raises(UsageError, match=r"cannot be written \(.+\)"):
            measure_plan_rates(out, sample=[tmp_path / "none"])
    with pytest.raises(InputError, match="no such file"):  # nor is a file left of what is not measured
        measure_plan_rates(tmp_path / "rates.json", sample=[tmp_path / "none"])
    assert not list(tmp_path.iterdir())
