"""Environments of the package: the Ising model, the Gaussian squeeze, battle from drawn starts."""
