"""Models in memory: what is refused, how one is read as a checkpoint, and how a planned checkpoint becomes one."""
