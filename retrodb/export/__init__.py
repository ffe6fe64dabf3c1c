"""Neighbour tables in the formats of trainers: one file per format."""
