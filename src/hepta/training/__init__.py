"""The loop, its optimizer, schedule, checkpoints and metrics."""
