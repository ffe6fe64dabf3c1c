"""Stage dedup: what overlaps the test sets or other documents is found, reported and deleted."""
