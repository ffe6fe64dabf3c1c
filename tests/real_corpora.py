"""The real corpora that lie next to the repository, where there are any."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

DATA = Path(__file__).resolve().parents[1].parent / "shared" / "data"


def corpus(name: str) -> Path:
    """Where a corpus is; skips the test where there is none."""
    if not (DATA / name).exists():
        pytest.skip(f"no {name} next to the repository")
    return DATA / name


def content(name: str) -> bytes:
    """What a corpus holds, decompressed; skips the test where there is none."""
    return subprocess.run(["zstd", "-dc", "--long=27", corpus(name)], check=True, capture_output=True).stdout


def unpack(archive: str, folder: Path) -> Path:
    """An archive, unpacked into a folder; skips the test where there is none."""
    packed = content(archive)
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["tar", "xf", "-", "-C", folder], input=packed, check=True)
    return folder
