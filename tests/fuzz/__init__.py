"""Hundreds of thousands of invalid inputs, each of which must be decoded or rejected with a message."""
