"""Networks that turn images into vectors: one file each."""
