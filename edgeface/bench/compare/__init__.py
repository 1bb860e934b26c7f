"""Compare benchmark results."""
