"""`python -m rllib_cli`, for when another package's `rllib` comes first on the PATH."""

from rllib_cli.command import main

main(prog_name="rllib")
