"""What the dynamic layers of a trained model do."""
