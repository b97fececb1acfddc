"""Suites that reproduce every figure we publish: `python -m benchmarks [SUITE ...]`."""
