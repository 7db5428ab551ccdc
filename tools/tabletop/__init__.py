"""The parts of tools/make_tabletop.py: things, a world into which they fall, and its rendering.

One unit of length is a decimetre; z is up; the ground is z = 0. Nothing comes from a file: every
shape and texture follows from the numbers of a random generator.
"""
