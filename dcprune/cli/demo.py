"""`dcprune demo`."""


def demo() -> None:
    """Run the whole chain."""
