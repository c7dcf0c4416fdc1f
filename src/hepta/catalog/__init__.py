"""Pinned public data and models, brought as files."""
