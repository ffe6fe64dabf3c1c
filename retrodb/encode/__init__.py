"""Frozen encoders: what turns a chunk's text into its key. `encoder.resolve_encoder` is the way in."""
