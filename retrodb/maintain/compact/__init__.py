"""Compaction: files are rewritten without their deleted rows, and small ones joined."""
