"""A look inside a model: where it attends, what its layers would say, which words and neurons decide."""
