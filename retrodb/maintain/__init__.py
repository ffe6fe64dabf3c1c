"""Maintenance: statistics, update, compaction, check and repair, purge, and older snapshots."""
