"""What a process keeps of the shards that it reads, within its memory limit: one cache for all of them.

Layouts of documents, rows of files, masks and tombstones are read again when they are not there, so the cache changes what
a command costs, and nothing else. The largest of them belong to one shard, so the last one is always kept, whatever its size.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from threading import RLock
from typing import Generic, ParamSpec, TypeAlias, TypeVar, cast

from retrodb.memory import PROCESS_MEMORY

P = ParamSpec("P")
V = TypeVar("V")


class BoundedCache:
    """Values of readers by key. When they need more bytes than the limit, those that were used least recently go."""

    def __init__(self, limit_bytes: Callable[[], int]) -> None:
        self._limit_bytes = limit_bytes
        self._values: OrderedDict[_Key, tuple[object, int]] = OrderedDict()
        self._keys_of: dict[_Owner, set[_Key]] = {}
        self._lock = RLock()  # a reader may be collected, and its values forgotten, while a value is put
        self.size_bytes = 0  # of all values

    def get(self, key: _Key) -> tuple[object] | None:
        """The value of a key; None when it is not there."""
        with self._lock:
            if key not in self._values:
                return None
            self._values.move_to_end(key)
            return (self._values[key][0],)

    def put(self, key: _Key, value: object, size_bytes: int) -> None:
        """Keep a value of so many bytes, and forget others until the limit is kept."""
        with self._lock:
            self._forget(key)
            self._values[key] = (value, size_bytes)
            self._keys_of.setdefault(key[0], set()).add(key)
            self.size_bytes += size_bytes
            while self.size_bytes > self._limit_bytes() and len(self._values) > 1:
                oldest, entry = self._values.popitem(last=False)
                self._keys_of.get(oldest[0], set()).discard(oldest)
                self.size_bytes -= entry[1]

    def forget_all(self, owner: _Owner) -> None:
        """Forget every value of a reader. This may run between any two lines of this class, in the same thread."""
        with self._lock:
            for key in self._keys_of.pop(owner, ()):
                self._forget(key)

    def _forget(self, key: _Key) -> None:
        entry = self._values.pop(key, None)
        if entry is not None:
            self._keys_of.get(key[0], set()).discard(key)
            self.size_bytes -= entry[1]

    def __len__(self) -> int:
        return len(self._values)


class _Owner:
    """Tells the keys of one reader from those of another."""


_Key: TypeAlias = tuple[_Owner, Hashable]

PROCESS_CACHE = BoundedCache(lambda: PROCESS_MEMORY.cache_bytes)
"""The cache of this process."""


class CachedReader(Generic[P, V]):
    """A function that reads something by its arguments, with its results in the cache of the process.

    The results are forgotten together with this reader.
    """

    def __init__(
        self, read: Callable[P, V], size_bytes: Callable[[V], int], cache: BoundedCache = PROCESS_CACHE
    ) -> None:
        """
        Args:
            read: reads a value; its arguments are hashable.
            size_bytes: the memory of a value.
        """
        self._read, self._size_bytes, self._cache = read, size_bytes, cache
        self._owner = _Owner()

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> V:
        key = (self._owner, (args, tuple(kwargs.items())))
        found = self._cache.get(key)
        if found is not None:
            return cast(V, found[0])
        value = self._read(*args, **kwargs)
        self._cache.put(key, value, self._size_bytes(value))
        return value

    def __del__(self) -> None:
        self._cache.forget_all(self._owner)
