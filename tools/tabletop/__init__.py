"""What tools/make_tabletop.py is made of: things, a world to drop them in, and its picture.

One unit of length is a decimetre; z is up; the ground is z = 0. Nothing comes from a file: every
shape and texture follows from the numbers of a random generator.
"""
