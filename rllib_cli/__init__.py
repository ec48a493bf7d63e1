"""The `rllib` command, a package of its own beside `rllib_mfq`.

Importing `rllib_mfq` imports Ray and torch, which takes seconds. `rllib --help` must be faster, so
`command`, `options`, `experiments`, `arena` and `reproduce` import none of the three at their top.
"""
