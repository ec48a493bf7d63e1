"""The paper's three experiments over seeds: what is trained, how it is measured and compared.

Each has a function `reproduce(train, ...)` with the arguments of the command `rllib reproduce`.
It trains all variants with `train`, writes figures into the folder `out`, and returns them.
"""
