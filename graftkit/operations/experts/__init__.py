"""What makes a mixture of experts of a dense model."""
