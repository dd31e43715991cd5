"""PSEC: parametric skill expansion and composition (Liu et al., ICLR 2025, arXiv 2502.05932).

A diffusion policy is cloned once (`base.py`). Every further skill is a low-rank increment of all its linear layers,
learnt with the base frozen (`skill.py`), and a small network mixes the increments inside the layers, state by state
(`compose.py`, which also has the mixtures of noises and of actions that the paper compares with).
"""
