"""Raw text to clean documents, with a reason for every one dropped."""
