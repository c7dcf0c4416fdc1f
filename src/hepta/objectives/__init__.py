"""Batch and model to loss."""
