"""Run a benchmark: scenarios, load, results."""
