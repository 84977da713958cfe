"""The lens: what a checkpoint computes in true float64, and how far its own dtype is from it."""
