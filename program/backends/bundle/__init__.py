"""The model bundle: a trained model's files, its manifest and its reference answers."""
