"""How much the dynamic layers of a trained model depend on the input."""
