"""Writes the table of commands in the README: `python -m retrodb_cli.docs [--check] [README]`."""

from __future__ import annotations

import re
from pathlib import Path

import click

from .main import SECTIONS

_BLOCK = re.compile(r"(?<=<!-- commands -->\n).*?(?=<!-- /commands -->)", re.DOTALL)


def command_table() -> str:
    """The table of commands in Markdown."""
    rows = [
        f"| {section if i == 0 else ''} | `retrodb {name}` | {line} |\n"
        for section, commands in SECTIONS.items()
        for i, (name, line) in enumerate(commands.items())
    ]
    return "".join(["| | command | what it does |\n", "| --- | --- | --- |\n", *rows])


def with_command_table(readme: str) -> str:
    """The text with a new table between its markers.

    Raises:
        click.ClickException: the text does not have exactly one pair of markers.
    """
    text, count = _BLOCK.subn(lambda _: command_table(), readme)
    if count != 1:
        raise click.ClickException("The text needs exactly one pair of <!-- commands --> and <!-- /commands --> lines.")
    return text


@click.command()
@click.argument("readme", type=click.Path(exists=True, dir_okay=False, path_type=Path), default="README.md")
@click.option("--check", is_flag=True, help="Change nothing. Fail if the table is not up to date.")
def command(readme: Path, check: bool) -> None:
    """Write the table of commands between the markers in README."""
    before = readme.read_text(encoding="utf-8")
    after = with_command_table(before)
    if check and before != after:
        raise click.ClickException(
            f"{readme}: the table of commands is not up to date. Run 'python -m retrodb_cli.docs'."
        )
    if before != after:
        readme.write_text(after, encoding="utf-8")


if __name__ == "__main__":
    command()
