"""A model's own forward with its parameters paged in from the files: for models larger than memory."""
