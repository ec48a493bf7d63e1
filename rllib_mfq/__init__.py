"""Mean field Q-learning for Ray RLlib."""
