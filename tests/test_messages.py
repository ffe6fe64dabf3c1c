"""Every command and option that a message of the product names exists, on the command that shows the message."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from retrodb_cli.main import COMMANDS, cli

ROOT = Path(__file__).resolve().parents[1]
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*")
DECLARATION = re.compile(r"--[a-z-]+(/--[a-z-]+)?")
NAMED = re.compile(r"\bretrodb ([a-z][a-z-]*)((?: [a-z][a-z-]*)?)((?:(?!\. |[\n';,]).)*)")
# The commands that can show the messages of a module, by the longest prefix of its path. An option that only some of them
# have must stand behind its command: 'retrodb embed --dtype float32'.
SHOWN_BY = {
    "bench/heldout.py": ["bench recall"],
    "bench/recall.py": ["bench recall"],
    "bench/throughput.py": ["bench throughput"],
    "dedup": ["dedup", "queries add", "eval-retrieval", "leakage", "build", "update"],
    "encode": ["embed", "search", "build", "update"],
    "encode/device.py": [
        *("tag", "embed", "neighbours", "search", "leakage", "eval-retrieval", "validate", "build", "update", "check")
    ],
    "export": ["export"],
    "retro/checkpoint.py": ["retro fit", "retro eval", "retro generate"],
    "engine": ["ingest", "dedup", "tag", "embed", "index", "neighbours", "build", "update", "compact", "check"],
    "format": list(COMMANDS),
    "memory.py": [
        *("build", "update", "ingest", "dedup", "tag", "filter", "undelete", "embed", "index", "queries add", "neighbours"),
        *("export", "search", "sql", "diff", "exposure", "leakage", "eval-retrieval", "check", "compact", "purge"),
    ],
    "maintain/check": ["check"],
    "maintain/check/recompute.py": ["dedup"],  # the options of commands that it names
    "maintain/copy": ["copy"],
    "maintain/plan": ["plan"],
    "maintain/purge": ["purge"],
    "maintain/snapshots/pins.py": ["pin"],
    "maintain/update/build.py": ["build"],
    "maintain/update/sample.py": ["build", "ingest"],
    "maintain/update/recipe.py": ["update", "schedule"],
    "maintain/update/schedule.py": ["update"],  # the options of the command that it prints
    "retro/run_leakage.py": ["leakage"],
    "retro/run_training.py": ["retro train", "retro fit"],
    "retro/validate.py": ["validate"],
    "screen": ["tag"],
    "stages/dedup": ["dedup"],
    "stages/deletion/filter.py": ["filter", "undelete"],
    "stages/deletion/tag.py": ["tag"],
    "stages/embed": ["embed"],
    "stages/embed/spaces.py": ["space drop"],
    "stages/index": ["index"],
    "stages/ingest": ["ingest"],
    "stages/ingest/shard.py": ["ingest", "build", "update"],
    "stages/init.py": ["init"],
    "stages/neighbours": ["neighbours"],
    "stages/neighbours/block_join.py": ["neighbours", "build", "update", "check"],
    "stages/neighbours/edit.py": ["neighbours edit"],
    "stages/queries": ["queries add"],
    "stages/tokenizer.py": ["tokenizer train"],
    "view/sql.py": ["sql"],
    "view/named.py": ["filter", "undelete", "purge"],
}  # fmt: skip


SHOWN_BY_CLI = {
    "docs": [],
    "main": ["stats", "ingest", "neighbours show"],  # the ends of all messages
    "options": ["ingest", "embed"],
    "render": ["dedup"],
    "render_copy": ["copy"],
    "render_purge": ["purge"],
    "render_screen": ["check"],
    "selection": ["filter", "undelete", "purge"],
}


def command_of(words: str) -> click.Command | None:
    """The command with these words; of a group with a default command, that one."""
    command: click.Command | None = cli
    for word in words.split():
        if command is cli:
            command = cli.get_command(click.Context(cli), word)
        else:  # a group with a default command takes any word for its argument
            command = command.commands.get(word) if isinstance(command, click.Group) else None
    return getattr(command, "default", command)


def options_of(words: str) -> set[str]:
    command = command_of(words)
    assert command is not None, f"there is no command '{words}'"
    if isinstance(command, click.Group):
        return {
            option for name in command.list_commands(click.Context(command)) for option in options_of(f"{words} {name}")
        }
    return {option for param in command.params for option in (*param.opts, *param.secondary_opts)} | {"--help"}


def messages(path: Path) -> Iterator[tuple[int, str]]:
    """The texts of a module that are no docstrings. Values in f-strings are shown as X."""
    tree = ast.parse(path.read_text())
    skipped = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    skipped |= {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value
        elif isinstance(node, ast.JoinedStr):
            parts = (str(part.value) if isinstance(part, ast.Constant) else "X" for part in node.values)
            yield node.lineno, "".join(parts)


OF_OTHER_PROGRAMS = ROOT / "retrodb/maintain/update/cluster_schedule.py"  # the options of schedulers


def all_messages() -> Iterator[tuple[str, str, list[str]]]:
    """Place, text, and the commands that show it, of every text that names a command or an option."""
    for path in sorted({*(ROOT / "retrodb").rglob("*.py"), *(ROOT / "cli").glob("*.py")} - {OF_OTHER_PROGRAMS}):
        relative = path.relative_to(ROOT)
        if relative.parts[0] == "cli":
            name = relative.stem.replace("_", "-")
            commands = SHOWN_BY_CLI.get(relative.stem, [name] if name in COMMANDS else [])
        else:
            inside = relative.relative_to("retrodb").as_posix()
            prefixes = [prefix for prefix in SHOWN_BY if inside == prefix or inside.startswith(f"{prefix}/")]
            commands = SHOWN_BY[max(prefixes, key=len)] if prefixes else []
        for line, text in messages(path):
            if (
                "pip install" not in text
                and not DECLARATION.fullmatch(text)
                and (OPTION.search(text) or NAMED.search(text))
            ):
                yield f"{relative}:{line}", text, commands


def faults(text: str, commands: list[str]) -> Iterator[str]:
    """What a message names and is not there."""
    rest = text
    for match in NAMED.finditer(text):
        words = match[1] if command_of(match[1]) is not None else ""
        if not words:
            continue  # prose, such as "this retrodb reads"
        inner = f"{match[1]}{match[2]}"
        words = inner if match[2] and command_of(inner) is not None and inner != words else words
        named = OPTION.findall(match[0])
        yield from (f"'{words}' has no {option}" for option in named if option not in options_of(words))
        rest = rest.replace(match[0], "", 1)
    first = rest.split()[0].strip("'") if rest.split() else ""
    owners = [first] if first in COMMANDS else commands
    for option in OPTION.findall(rest):
        if not owners:
            yield f"{option} of which command?"
        yield from (f"'{owner}' has no {option}" for owner in owners if option not in options_of(owner))


ALL = list(all_messages())


def test_messages_are_found() -> None:
    assert len(ALL) > 150


@pytest.mark.parametrize(("place", "text", "commands"), ALL, ids=[place for place, _, _ in ALL])
def test_a_message_names_only_what_its_command_has(place: str, text: str, commands: list[str]) -> None:
    assert not list(faults(text, commands)), text


def test_a_wrong_message_is_noticed() -> None:
    assert list(faults("Allow it with '--max-reject-rate'.", ["update"]))
    assert list(faults("Run 'retrodb embed --dimension 3'.", []))
    assert list(faults("Use --device.", []))
    assert not list(faults("Run 'retrodb embed --space X', or 'retrodb neighbours show'. This retrodb reads it.", []))
