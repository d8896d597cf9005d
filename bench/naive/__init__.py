"""The tutorials' serving stack, which runs in an environment of its own."""
