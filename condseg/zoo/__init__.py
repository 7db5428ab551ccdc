"""Checkpoints and published weights."""
