"""Input files -> documents -> chunks."""
