"""A training job: what it was given, how it is watched, how it ends."""
