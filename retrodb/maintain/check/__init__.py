"""Check and repair: damage is listed, and rebuilt where it follows from other files."""
