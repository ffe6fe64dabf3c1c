"""The cache of a process keeps its limit in bytes, keeps what was used last, and forgets what nobody can ask for."""

from __future__ import annotations

import gc

import pytest

from retrodb.store.bounded_cache import BoundedCache, CachedReader


def reader(cache: BoundedCache, reads: list[int], size_bytes: int = 10) -> CachedReader[[int], str]:
    def read(number: int) -> str:
        reads.append(number)
        return f"value {number}"

    return CachedReader(read, lambda _: size_bytes, cache)


def test_a_value_is_read_once_while_there_is_room() -> None:
    cache, reads = BoundedCache(lambda: 30), list[int]()
    read = reader(cache, reads)
    assert [read(number) for number in (1, 2, 1, 3, 1)] == [f"value {number}" for number in (1, 2, 1, 3, 1)]
    assert (reads, cache.size_bytes, len(cache)) == ([1, 2, 3], 30, 3)


def test_what_was_used_least_recently_goes_first() -> None:
    cache, reads = BoundedCache(lambda: 30), list[int]()
    read = reader(cache, reads)
    for number in (1, 2, 3, 1, 4, 1, 2):
        read(number)
        assert cache.size_bytes <= 30
    assert reads == [1, 2, 3, 4, 2]


def test_readers_share_the_limit_and_never_mix_values() -> None:
    cache, reads, other_reads = BoundedCache(lambda: 20), list[int](), list[int]()
    read, other = reader(cache, reads), reader(cache, other_reads)
    for _ in range(2):
        read(1)
        other(1)
    assert (reads, other_reads) == ([1], [1])
    read(2)
    other(1)
    read(1)
    assert (reads, other_reads) == ([1, 2, 1], [1])


def test_one_value_above_the_limit_is_kept_until_the_next() -> None:
    cache, reads = BoundedCache(lambda: 5), list[int]()
    read = reader(cache, reads)
    for number in (1, 1, 2, 2, 1):
        read(number)
    assert (reads, len(cache)) == ([1, 2, 1], 1)


def test_a_lower_limit_applies_to_the_next_value() -> None:
    limits, reads = [100], list[int]()
    cache = BoundedCache(lambda: limits[0])
    read = reader(cache, reads)
    for number in range(5):
        read(number)
    limits[0] = 20
    read(9)
    assert cache.size_bytes == 20


def test_the_values_of_a_reader_are_forgotten_with_it() -> None:
    cache = BoundedCache(lambda: 100)
    read, other = reader(cache, []), reader(cache, [])
    read(1), read(2), other(1)
    del read
    gc.collect()
    assert (len(cache), cache.size_bytes) == (1, 10)


@pytest.mark.parametrize("number", [1, 2])
def test_a_reader_may_be_collected_while_its_value_goes(number: int) -> None:
    """As when the garbage collector runs at that moment: here the value itself has the last reference."""
    cache = BoundedCache(lambda: 20)
    kept = list[CachedReader[[int], object]]()
    kept.append(CachedReader(lambda _: list(kept), lambda _: 10, cache))
    for each in range(number):
        kept[0](each)
    kept.clear()
    other = reader(cache, [])
    assert [other(each) for each in range(3)] == ["value 0", "value 1", "value 2"]
    assert (len(cache), cache.size_bytes) == (2, 20)
