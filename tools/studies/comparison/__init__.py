"""The same detector trained with each dynamic layer: same budget, several seeds."""
