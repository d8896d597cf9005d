"""A trained model as files, and the proof of its answers."""
