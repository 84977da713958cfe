"""One model run by several ranks: each reads and runs its run of blocks, and rank 0 everything else, as one process would."""
