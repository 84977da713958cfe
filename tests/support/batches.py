"""A batch of random ids for models that are built small."""

import torch

from graftkit.running.probes import Probe


def batch(rows=3):
    """So many rows of 12 ids, the same each time."""
    ids = torch.randint(4, 300, (rows, 12), generator=torch.Generator().manual_seed(0))
    return Probe("random ids", ids, torch.ones_like(ids))
