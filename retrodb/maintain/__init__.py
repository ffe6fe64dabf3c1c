"""Maintenance of a database: what is in it, whether it is whole, and a first one to try."""
