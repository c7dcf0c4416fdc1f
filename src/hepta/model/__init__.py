"""Language models as nn.Modules, and their Hugging Face directories."""
