"""Pictures in streams of records."""
