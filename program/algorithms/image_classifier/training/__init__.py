"""Training the image classifier."""
