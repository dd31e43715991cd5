"""BARFI: rewards learnt so that the policy trained on them does well at the true one (arXiv 2310.19007)."""
