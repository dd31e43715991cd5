"""Comparison of our functions with recorded numbers: `python -m tests.parity ALGO DIR`."""
