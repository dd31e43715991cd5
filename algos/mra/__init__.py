"""MRA: meta representations for agents in games of varying population (CoLLAs 2023, arXiv 2108.12988).

One set of networks is trained on games that differ in their numbers of agents. How to act, given which other agents
matter, is common to all games: policy and critic. Which ones matter depends on the game: a relation graph, chosen by
latent skills whose distribution depends on the population. `observe.py` has what the networks see, `nets.py` and
`initial.py` the networks, `objectives.py` the losses, `learn.py` the steps.
"""
