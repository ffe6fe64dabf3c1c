"""Recall against latency, throughput, and what follows for planning."""
