"""What a new head must keep: the same bits at every load, one answer alone and in a batch, the first loss that was meant."""
