"""The cartridges: one module or package each."""
