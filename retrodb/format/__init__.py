"""What lies on disk, byte for byte. README.md in this folder is the specification; this package is its code."""

FORMAT_VERSION = 2
"""Raised by one whenever an older retrodb could misread what a newer one writes."""

MAX_SHARD_CHUNKS = 1 << 20
"""A shard holds at most this many chunks, so that rows of a shard fit 32 bits with room to join shards."""

ROW_GROUP_ROWS = 4096
"""Rows of a Parquet row group: the unit of a random read of text."""
