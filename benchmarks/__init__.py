"""Benchmarks beside the reference implementation."""
