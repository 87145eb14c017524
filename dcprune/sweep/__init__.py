"""A grid of runs: what it takes (`plan`), what is done already (`cache`), and doing the rest (`runner`)."""
