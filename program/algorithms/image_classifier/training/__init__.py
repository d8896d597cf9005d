"""Training of the image classifier."""
