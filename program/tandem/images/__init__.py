"""Picture files: what they claim, what is allowed, and their pixels."""
