"""Versions: pin, restore, compare and collect snapshots."""
