"""Describe an IR: its contract, its files, and the work of one inference."""
