"""The serving benchmark: the limit, the tutorials' stack and ours, with the same model and bytes."""
