"""What tools/benchmark.py measures: one module a subcommand, and how it is measured."""
