"""A two-stage approach to multi-entity task allocation (Gong et al., EAAI 2024, arXiv 2407.00496).

Stage 1 (`preassign.py`): every free entity chooses an open task, by the similarity of learnt embeddings.
Stage 2 (`manager.py`): every open task draws its team, one by one, from the entities that chose it.
`decide.py` makes a whole decision of both, learning on the way. `worker.py` has the ablation in which entities set
their own prices; `nets.py` the settings and networks of all; `solvers.py` heuristics and exact solvers of a decision,
`exact.py` CP-SAT on the host, `solver.py` all of them as an algorithm that learns nothing.
"""
