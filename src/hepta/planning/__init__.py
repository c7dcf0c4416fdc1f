"""Parameters, memory and time before a run."""
