"""The outside world's files -> documents -> chunks."""
