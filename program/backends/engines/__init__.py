"""The inference engines, and the choice of the one that serves a model."""
