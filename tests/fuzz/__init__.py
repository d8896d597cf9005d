"""Broken and hostile inputs by the hundred thousand, each of which must be read or refused in a sentence."""
