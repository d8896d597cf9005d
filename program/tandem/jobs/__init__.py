"""Training jobs: their configuration, their supervision and their failures."""
