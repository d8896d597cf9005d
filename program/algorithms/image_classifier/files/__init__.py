"""Channels of image files, one folder per label or listed by an index."""
