"""The `rllib` command.

A package of its own beside `rllib_mfq`: importing that one imports Ray and torch, since it
registers MFQ with Tune, and takes seconds; `rllib --help` and a typing error should not.
So `command`, `experiments` and `examples` import neither, and the rest is imported when needed.
"""
