"""Backbones and their initial weights."""
