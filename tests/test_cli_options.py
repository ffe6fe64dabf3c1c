"""Options that several commands share: sizes, fractions and durations, and one memory limit."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import click
import pytest

from retrodb.config import IndexParams
from retrodb_cli.main import cli
from retrodb_cli.option_types import duration, fraction, size


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("4096", 4096),
        ("1B", 1),
        ("500MB", 500 << 20),
        ("500M", 500 << 20),
        ("500MiB", 500 << 20),
        ("8 GiB", 8 << 30),
        ("8G", 8 << 30),
        ("8gb", 8 << 30),
        ("2K", 2 << 10),
        ("1T", 1 << 40),
        ("1TiB", 1 << 40),
    ],
)
def test_units_of_sizes_are_powers_of_two(text: str, size_bytes: int) -> None:
    assert size(text) == size_bytes


@pytest.mark.parametrize(("text", "value"), [("0.5%", 0.005), ("0.005", 0.005), ("100%", 1.0), ("0", 0.0)])
def test_a_fraction_is_a_number_or_a_percentage(text: str, value: float) -> None:
    assert fraction(text) == pytest.approx(value)


@pytest.mark.parametrize(("text", "seconds"), [("45s", 45), ("30m", 1800), ("12h", 43_200), ("7d", 604_800)])
def test_a_duration_has_a_unit(text: str, seconds: int) -> None:
    assert duration(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize(
    ("parse", "text"),
    [(size, "0"), (size, "-1G"), (size, "1.5G"), (size, "8X"), (size, ""), (fraction, "2"), (fraction, "x%"), (duration, "7"),
     (duration, "d"), (duration, "9" * 30 + "d")],
)  # fmt: skip
def test_an_invalid_value_is_refused_by_name(parse: Callable[[str], object], text: str) -> None:
    with pytest.raises(click.BadParameter, match=f"'{text}' is "):
        parse(text)


def option_of(command_name: str, option: str) -> click.Parameter:
    command: click.Command | None = cli
    for word in command_name.split():
        assert isinstance(command, click.Group)
        command = command.get_command(click.Context(command), word)
    assert command is not None
    command = getattr(command, "default", command)
    [parameter] = [each for each in command.params if option in each.opts]
    return parameter


LONG = (
    "build", "update", "ingest", "dedup", "tag", "filter", "undelete", "embed", "index", "queries add", "neighbours", "export",
    "search", "sql", "diff", "exposure", "leakage", "eval-retrieval", "check", "compact", "purge",
)  # fmt: skip


@pytest.mark.parametrize("name", LONG)
def test_every_long_command_takes_the_same_memory_limit(name: str) -> None:
    """Where none is given, half of the machine's memory is the limit, which is known when the command runs."""
    parameter = option_of(name, "--memory")
    shown = str(parameter.to_info_dict()["help"])
    assert "Mapped files do not count" in shown
    assert "powers of two" in shown
    assert "half of the machine's memory" in shown
    assert parameter.type_cast_value(click.Context(click.Command(name)), "2G") == 2 << 30


def test_the_memory_of_the_machine_that_searches_is_another_option() -> None:
    parameter = option_of("index", "--search-memory")
    assert parameter.type_cast_value(click.Context(click.Command("index")), "2G") == 2 << 30
    assert parameter.default == f"{IndexParams.search_memory_bytes >> 30}GiB"
