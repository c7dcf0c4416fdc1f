"""Sampling and the batched KV-cache engine."""
