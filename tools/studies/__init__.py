"""Benchmarks, the comparison of the layers, and the inspection of trained ones."""
