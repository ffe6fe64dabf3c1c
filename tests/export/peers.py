"""The trainers' own readers as processes that stay, and which of them are here."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
RETRO_PYTORCH = Path(os.environ.get("RETRO_PYTORCH_PYTHON", HERE.parents[1] / ".venv-retro-pytorch/bin/python"))

needs_megatron = pytest.mark.skipif(
    importlib.util.find_spec("megatron") is None, reason="megatron-core is not installed: 'make peers' installs it"
)
needs_retro_pytorch = pytest.mark.skipif(
    not RETRO_PYTORCH.exists(), reason="retro-pytorch is not installed: 'make peers' installs it"
)
needs_datasets = pytest.mark.skipif(
    importlib.util.find_spec("datasets") is None, reason="datasets is not installed: 'make peers' installs it"
)


class Reader:
    """A reader in a process of its own that answers questions until it is closed."""

    def __init__(self, script: str, python: Path = Path(sys.executable), first: Any = None) -> None:
        environment = {
            key: value for key, value in os.environ.items() if key != "PYTHONPATH" or python == Path(sys.executable)
        }
        self._process = subprocess.Popen(
            [str(python), str(HERE / script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        if first is not None:
            self._say(first)
        assert self._answer() == "ready"

    def ask(self, question: Any) -> Any:
        """The answer to a question."""
        self._say(question)
        return self._answer()

    def _answer(self) -> Any:
        line = self._process.stdout.readline()  # type: ignore[union-attr]
        if not line:
            raise AssertionError(self._process.communicate()[1])
        return json.loads(line)

    def close(self) -> None:
        """End the process."""
        self._process.communicate()

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _say(self, question: Any) -> None:
        self._process.stdin.write(json.dumps(question) + "\n")  # type: ignore[union-attr]
        self._process.stdin.flush()  # type: ignore[union-attr]


if __name__ == "__main__":
    for mark in (needs_megatron, needs_retro_pytorch, needs_datasets):
        is_missing, name = mark.args[0], mark.kwargs["reason"].split(" is ")[0]
        print(f"{name}: {'missing' if is_missing else 'installed'}")
