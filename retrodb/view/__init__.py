"""The live database as of one snapshot: what is there, what is masked, and how to read it."""
