"""Reproduction: the paper's three experiments over seeds, from training to the recorded figures."""
