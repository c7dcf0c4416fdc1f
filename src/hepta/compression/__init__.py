"""Smaller models, measured: quantise, prune, distil."""
