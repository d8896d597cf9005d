"""The algorithms: one module or package each."""
