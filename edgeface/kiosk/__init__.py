"""What happens at the door: cameras, one decision a visit, and what is told of it."""
