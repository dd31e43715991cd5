"""DrQ-v2 (arXiv 2107.09645): actor and critics on random shifts of pixels, and how often they are updated.

`nets.py` has the networks, `learn.py` one update, `learner.py` what the replay loop of `algos/adaptive_rr` needs of the
method, `train.py` the algorithm with a constant replay ratio, `settings.py` the settings, `fau.py` the share of active
units that each update measures, and `replay_ratio.py` how many updates an agent step gets: always alike, or by the
adaptive rule of Adaptive Replay Ratio (ICLR 2024, arXiv 2310.07418), which raises it once that share has settled.
"""
