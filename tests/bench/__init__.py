"""Benchmarks: figures to compare, never tests that time decides. `python -m tests.bench --help`."""
