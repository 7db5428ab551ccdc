"""The dynamic layers against each other in one detector: same budget, several seeds."""
