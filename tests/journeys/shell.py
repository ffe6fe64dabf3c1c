"""A user who types commands: each line is run in this process, and what it prints is read with care."""

from __future__ import annotations

import io
import json
import os
import shlex
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from test_messages import faults, options_of

from retrodb_cli.main import main

GROUPS = ("tokenizer", "queries", "space", "bench", "retro")
"""Commands whose second word is a command too. `neighbours` and `pin` have a default command."""


@dataclass(frozen=True)
class Printed:
    """What a command printed."""

    out: str
    err: str

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The objects of --json."""
        return [json.loads(line) for line in self.out.splitlines()]

    @property
    def row(self) -> dict[str, Any]:
        """The only object of --json."""
        [row] = self.rows
        return row


@dataclass
class User:
    """Runs command lines in a folder of its own."""

    folder: Path
    typed: list[str] = field(default_factory=list)

    def types(self, line: str, code: int = 0) -> Printed:
        """Run a line. Its options are in the help, its exit code is `code`, and its messages name only options that exist."""
        program, *arguments = shlex.split(line)
        assert program == "retrodb"
        command = " ".join(arguments[: 2 if arguments[0] in GROUPS else 1])
        named = {word.partition("=")[0] for word in arguments if word.startswith("--")}
        assert named <= options_of(command), line
        out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2))
        before = Path.cwd()
        os.chdir(self.folder)
        try:
            with redirect_stdout(out), redirect_stderr(err):
                ended = main(arguments)
        finally:
            os.chdir(before)
        printed = Printed(*(stream.buffer.getvalue().decode() for stream in (out, err)))  # type: ignore[attr-defined]
        self.typed.append(line)
        assert ended == code, f"{line}\n{printed.out}{printed.err}"
        for shown in f"{printed.out}\n{printed.err}".splitlines():
            assert "Traceback" not in shown, line
            assert not list(faults(shown, [command])), f"{line}\n{shown}"
        return printed
