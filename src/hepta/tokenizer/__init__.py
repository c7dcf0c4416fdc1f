"""Byte-level BPE and the chat template."""
