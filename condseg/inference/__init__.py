"""A trained model on images: prediction, evaluation, drawing."""
