"""What tools/benchmark.py measures, and how it is measured."""
