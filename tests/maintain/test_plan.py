"""Plans are pure functions of a request and of figures with origins; wrong requests name the part that is wrong."""

from __future__ import annotations

import json
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
     ("cpu-hour=1,cpu-hour=2", "two prices"), ("cpu-hour=nan", "not a price"), ("", "NAME=NUMBER"), ("x=1", "unknown price 'x'")],
)  # fmt: skip
def test_a_wrong_price_is_named(text: str, named: str) -> None:
    with pytest.raises(UsageError) as error:
        parse_prices(text)
    assert named in str(error.value)


@pytest.mark.parametrize(
    ("changes", "named"),
    [({"gpu": "h1000", "gpus": 1}, "Known are: h100"), ({"gpus": 2}, "without a type"), ({"gpu": "h100"}, "without a number"),
     ({"tokens": 1}, "--tokens 1"), ({"tokens": 10**17}, "at most"), ({"k": 0}, "--k 0"), ({"workers": 0}, "--workers 0"),
     ({"route_ranges": 1}, "at least 2 ranges"), ({"store": "tape"}, "local, s3"), ({"encoder": "x/y"}, "all-MiniLM-L6-v2"),
     ({"encoder": "hashing:0"}, "hashing:DIM"), ({"encoder": "hashing:x"}, "hashing:DIM"), ({"encoder": ""}, "hashing:DIM")],
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
    [({"version": 9}, "version 9"), ({"rates": {"speed": 1.0}}, "'speed'"), ({"rates": {"ingest": 0.0}}, "'ingest'")],
)
def test_a_file_of_other_rates_is_refused(change: dict[str, object], named: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=named):
        read_rates_file(stored(tmp_path / "rates.json", **change))


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
    database.embed()
    assert plan_database(database.path, tokens=10**9).dimension == 32


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
    for out in (tmp_path, tmp_path / "no" / "rates.json"):
        with pytest.raises(UsageError, match="cannot be written"):
            measure_plan_rates(out, sample=[tmp_path / "none"])
