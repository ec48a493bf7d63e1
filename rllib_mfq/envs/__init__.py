"""The paper's own environments: the Ising model and the Gaussian squeeze."""
