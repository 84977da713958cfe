"""What operations on parts of a model share."""
