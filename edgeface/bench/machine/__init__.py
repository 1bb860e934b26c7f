"""What the machine is, what it can attain, and what disturbs it."""
