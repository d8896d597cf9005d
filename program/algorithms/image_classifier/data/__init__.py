"""Pictures in files: listed, decoded, put in order."""
