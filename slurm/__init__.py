"""Sweeps: packing, jobs, and what happens to them on a cluster."""
