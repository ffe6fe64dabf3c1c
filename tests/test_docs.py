"""Commands, options, folders, links and extras in the documents exist. Every help text has an example and exit codes."""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from retrodb_cli.docs import with_command_table
from retrodb_cli.main import COMMANDS, cli

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
GUIDE = ROOT / "retrodb" / "README.md"
DOCUMENTS = sorted(
    path for path in ROOT.rglob("*.md") if not any(part.startswith(".") for part in path.relative_to(ROOT).parts)
)
FENCE = re.compile(r"^```[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
EXTRAS = re.compile(r"retrodb\[([a-z0-9,_-]+)\]")
LINK = re.compile(r"\]\(([^)\s]+)\)")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_and_options_in_code_blocks_exist(document: Path) -> None:
    wrong = [
        f"{' '.join(words)}: {fault}"
        for block in FENCE.findall(document.read_text())
        for words in command_lines(block)
        if (fault := fault_of(words))
    ]
    assert not wrong


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_have_a_target(document: Path) -> None:
    text = FENCE.sub("", document.read_text())
    dead = [link for link in LINK.findall(text) if not re.match(r"[a-z]+:", link) and not is_alive(document, link)]
    assert not dead


def test_every_folder_has_a_section_in_the_guide() -> None:
    headings = [line for line in GUIDE.read_text().splitlines() if line.startswith("#")]
    folders = [path.name for path in GUIDE.parent.iterdir() if any(path.glob("*.py"))]
    assert not [name for name in folders if not any(re.search(rf"\b{name}/", heading) for heading in headings)]


def test_the_command_table_is_up_to_date() -> None:
    text = README.read_text()
    assert with_command_table(text) == text


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_every_command_has_an_example_and_exit_codes(name: str) -> None:
    for words, command in leaves([name]):
        shown = command.get_help(click.Context(command, info_name=" ".join(words)))
        assert re.search(r"^Example:\n +retrodb \S", shown, re.MULTILINE), words
        assert re.search(r"^Exit codes:\n +0 ", shown, re.MULTILINE), words
        example = shown.partition("\nExample:\n")[2].partition("\n\n")[0]
        assert [fault for each in command_lines(example) if (fault := fault_of(each))] == [], words


def test_extras_that_are_named_exist() -> None:
    """In documents, in messages about packages that are not installed, and in the project's own requirements."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    files = [
        *DOCUMENTS,
        ROOT / "pyproject.toml",
        ROOT / "Makefile",
        *ROOT.glob("retrodb/**/*.py"),
        *ROOT.glob("cli/*.py"),
    ]
    named = {name for file in files for names in EXTRAS.findall(file.read_text()) for name in names.split(",")}
    assert named == named & extras.keys() != set()


def test_errors_in_a_document_are_found() -> None:
    assert fault_of(["no-such-command"]) == "no such command"
    assert fault_of(["--no-such-option"]) == "no option --no-such-option"
    assert list(command_lines("$ retrodb a \\\n  --b=1 | head -3\n  retrodb c > d  # retrodb e\nout of retrodb\n")) == [
        ["a", "--b=1"],
        ["c"],
    ]
    assert not is_alive(README, "no/such/file.md")


def command_lines(block: str) -> Iterator[list[str]]:
    """The words after `retrodb` in each line that is such a command, up to a pipe, redirection or comment."""
    for line in block.replace("\\\n", " ").splitlines():
        start = re.match(r"\s*(?:\$ )?retrodb (.+)", line)
        if start:
            words = shlex.split(start[1], comments=True)
            end = next(
                (i for i, word in enumerate(words) if word in ("|", "||", "&&", ";", ">", ">>", "<")), len(words)
            )
            yield words[:end]


def fault_of(words: list[str]) -> str | None:
    """What is wrong with a command line: the command or an option does not exist; None when all is right."""
    command: click.Command = cli
    for word in words:
        if word.startswith("-"):
            option = word.partition("=")[0]
            parameters = command.get_params(click.Context(command))
            known = {name for each in parameters for name in (*each.opts, *each.secondary_opts)}
            if option not in known:
                return f"no option {option}"
        elif isinstance(command, click.Group):
            found = command.get_command(click.Context(command), word)
            if found is None:
                return "no such command"
            command = found
    return None


def leaves(words: list[str], group: click.Group = cli) -> Iterator[tuple[list[str], click.Command]]:
    """A command, or those of a group of commands, with the words that call them."""
    command = group.get_command(click.Context(group), words[-1])
    assert command is not None, words
    if isinstance(command, click.Group):
        for name in command.list_commands(click.Context(command)):
            yield from leaves([*words, name], command)
    else:
        yield words, command


def is_alive(document: Path, link: str) -> bool:
    target, _, anchor = link.partition("#")
    path = (document.parent / target).resolve() if target else document
    return path.exists() and (not anchor or anchor in anchors(path.read_text()))


def anchors(text: str) -> set[str]:
    """The anchors that a forge makes of the headings: lower case, no punctuation, hyphens for spaces."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}
