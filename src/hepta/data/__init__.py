"""Documents and conversations to batches."""
