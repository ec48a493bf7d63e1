"""Mean field Q-learning as an RLlib algorithm."""
