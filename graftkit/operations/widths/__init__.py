"""What makes a model wider: the experiment on a miniature, and the tensors that follow from it."""
