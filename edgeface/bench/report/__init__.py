"""Reports of benchmark results."""
