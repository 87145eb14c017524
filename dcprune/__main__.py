"""`python -m dcprune`, and `accelerate launch -m dcprune`."""

from dcprune.cli.app import main

main()
