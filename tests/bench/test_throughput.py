"""Rates of the stages: measured on a small database, kept by machine and encoder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from made_documents import made_text

from retrodb.bench.rates import UNITS, keep_rates, read_rates
from retrodb.database import Database
from retrodb.errors import UsageError
from retrodb.store.cached_lines import cache_folder

Make = Callable[..., Database]


@pytest.mark.parametrize("documents", [0, 60])
def test_every_stage_gets_a_rate_that_is_stored(
    make_database: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, documents: int
) -> None:
    pages = [(str(i), made_text(i, 500)) for i in range(60)]  # the true ones take seconds to render
    monkeypatch.setattr("retrodb.bench.throughput.stdlib_documents", lambda: iter(pages))
    database = make_database({str(i): made_text(i, 500) for i in range(documents)})
    number = database.view().snapshot.number
    assert read_rates() == {}
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    result = database.bench_throughput(chunks=150, folder=folder)
    assert [each.stage for each in result.stages] == list(UNITS)
    assert all(each.rate > 0 and each.amount > 0 for each in result.stages)
    assert result.sample_source.startswith("the database's" if documents else "documentation")
    assert read_rates() == {each.stage: each.rate for each in result.stages if each.stage != "embed"}
    assert not list(folder.iterdir())
    assert database.view().snapshot.number == number


def test_rates_are_those_of_the_encoder_or_of_the_last_measurement() -> None:
    keep_rates("one", {"embed": 1.0, "index": 2.0})
    keep_rates("two", {"embed": 3.0, "index": 4.0})
    assert read_rates("one") == {"embed": 1.0, "index": 2.0}
    assert read_rates("three") == {"index": 4.0}
    keep_rates("one", {"embed": 5.0, "index": 6.0})
    assert read_rates("three") == {"index": 6.0}
    (cache_folder() / "rates.json").write_text("{ torn")
    assert read_rates("one") == {}


def test_a_sample_too_small_to_index_is_refused(make_database: Make) -> None:
    with pytest.raises(UsageError, match="sample of 10"):
        make_database({}).bench_throughput(chunks=10)
