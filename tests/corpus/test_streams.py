from __future__ import annotations

import bz2
import gzip
import lzma
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from retrodb.corpus.streams import open_decompressed
from retrodb.errors import InputError

COMPRESS: dict[str, Callable[[bytes], bytes]] = {"gzip": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}


def read(path: Path, size: int = -1) -> bytes:
    with open_decompressed(path) as stream:
        return stream.read() if size < 0 else b"".join(iter(lambda: stream.read(size), b""))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.sampled_from(sorted(COMPRESS)),
    parts=st.lists(
        st.tuples(st.binary(max_size=200_000), st.sampled_from([0, 1, 512, 300_000])), min_size=1, max_size=4
    ),
    size=st.sampled_from([-1, 1 << 20, 7_000]),
)
def test_members_with_zeros_after_each_are_read_as_one(
    tmp_path: Path, kind: str, parts: list[tuple[bytes, int]], size: int
) -> None:
    path = tmp_path / "packed"
    path.write_bytes(b"".join(COMPRESS[kind](content) + b"\0" * zeros for content, zeros in parts))
    assert read(path, size) == b"".join(content for content, _ in parts)


@pytest.mark.parametrize("kind", COMPRESS)
@pytest.mark.parametrize("rest", [b"x", b"\0\0x", b"\0" * 512 + b"garbage", b"\x1f"])
def test_bytes_after_the_end_are_damage(tmp_path: Path, kind: str, rest: bytes) -> None:
    """They may be a member whose first bytes were overwritten."""
    path = tmp_path / "packed"
    path.write_bytes(COMPRESS[kind](b"content") + rest)
    with pytest.raises(InputError, match=f"{kind} data is (damaged|cut off)"):
        read(path)


@pytest.mark.parametrize("kind", COMPRESS)
def test_damaged_second_member_is_never_a_shorter_file(tmp_path: Path, kind: str) -> None:
    first, second = COMPRESS[kind](b"first " * 50), COMPRESS[kind](b"second " * 50)
    path = tmp_path / "packed"
    for position in range(len(second)):
        damaged = bytearray(second)
        damaged[position] ^= 0x10
        path.write_bytes(first + damaged)
        try:
            content = read(path)
        except InputError:
            continue
        assert content == b"first " * 50 + b"second " * 50, position  # a byte of the header that says nothing


def test_file_that_is_not_there_is_named_even_if_its_name_is_not_utf8(tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        open_decompressed(f"{tmp_path}/caf\udce9.txt")
    assert str(error.value).startswith(f"{tmp_path}/caf\\xe9.txt: no such file")
