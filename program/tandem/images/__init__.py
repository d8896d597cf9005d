"""Image files: their headers, their limits and their pixels."""
