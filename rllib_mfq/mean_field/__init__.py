"""Mean field Q-learning as mathematics: numpy and torch, no Ray and no environment.

Source: Yang, Luo, Li, Zhou, Zhang, Wang, "Mean Field Multi-Agent Reinforcement Learning",
ICML 2018 (PMLR 80:5571-5580).  Docstrings cite its parts by name.
"""
