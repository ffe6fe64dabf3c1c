"""A finished file gets its name exactly once, on file systems with hard links and on those without."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from retrodb.errors import RetroDBError
from retrodb.store import exclusive_rename
from retrodb.store.exclusive_rename import file_system_of, rename_if_absent
from retrodb.store.storage import LocalStorage


def failing_link(code: int) -> Callable[[object, object], None]:
    def link(source: object, target: object) -> None:
        raise OSError(code, os.strerror(code), str(source))

    return link


def files(folder: Path) -> tuple[Path, Path]:
    temporary, target = folder / "unfinished", folder / "name"
    temporary.write_bytes(b"mine")
    return temporary, target


@pytest.mark.parametrize("code", [None, errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK])
def test_first_writer_wins_with_and_without_hard_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int | None
) -> None:
    if code is not None:
        monkeypatch.setattr(os, "link", failing_link(code))
    storage = LocalStorage(tmp_path)
    assert storage.put_if_absent("a/x", b"first")
    assert not storage.put_if_absent("a/x", b"second")
    assert storage.read("a/x") == b"first"
    assert storage.list("tmp") == []


def test_exists_that_hides_our_own_success_counts_as_success(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network file system repeats a request whose answer was lost, and meets the file that the first one made."""
    temporary, target = files(tmp_path)
    link = os.link

    def link_twice(source: Path, name: Path) -> None:
        link(source, name)
        link(source, name)

    monkeypatch.setattr(os, "link", link_twice)
    assert rename_if_absent(temporary, target)
    other = tmp_path / "other"
    other.write_bytes(b"theirs")
    monkeypatch.setattr(os, "link", link)
    assert not rename_if_absent(other, target)


def test_file_system_with_neither_way_is_refused_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    temporary, target = files(tmp_path)
    monkeypatch.setattr(os, "link", failing_link(errno.EPERM))
    monkeypatch.setattr(exclusive_rename.ctypes, "CDLL", lambda *a, **k: object())
    with pytest.raises(
        RetroDBError, match=rf"\({file_system_of(tmp_path)}\) has neither hard links.*another file system"
    ):
        rename_if_absent(temporary, target)
    assert not target.exists()


def test_other_failures_of_a_link_are_reported_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    temporary, target = files(tmp_path)
    monkeypatch.setattr(os, "link", failing_link(errno.EIO))
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        rename_if_absent(temporary, target)
