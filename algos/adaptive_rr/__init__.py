"""Adaptive Replay Ratio (Ma et al., ICLR 2024, arXiv 2310.07418) over off-policy methods.

`loop.py` plays, stores and updates, as one compiled program; `segments.py` lets the host say how many updates a program
makes; `drqv2.py` and `sac.py` are the algorithms over DrQ-v2 and SAC. The rule is `algos/drqv2/replay_ratio.py`.
"""
