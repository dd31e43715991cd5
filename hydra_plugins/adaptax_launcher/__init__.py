"""Hydra's launcher for packed sweeps. `hydra_plugins` is a namespace package: it has no __init__.py of its own."""
