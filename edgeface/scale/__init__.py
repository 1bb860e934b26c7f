"""Work beyond one machine."""
