"""The blocks of a model as its class builds them: how many its config counts, which are of a kind, which weights write."""
