"""Stage ingest: files -> documents of one source -> shards."""
