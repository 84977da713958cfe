"""Checkpoints of Llama with blocks inserted or dropped by hand, for what compares them block by block."""

import shutil

#: What a block adds to the residual stream: without both, it is the identity.
WRITERS = ("o_proj.weight", "down_proj.weight")

STACK = "model.layers"


def with_blocks(source, place, order, *, change=None):
    """Write the checkpoint ``source`` with the blocks ``order``: an index of the source, or ``~index`` for its silent copy.

    ``change`` may alter the tensors in place, by the names of the result.
    """
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(source)
    sizes = {"num_hidden_layers": len(order), "layer_types": None}
    new = type(model)(type(model.config)(**{**model.config.to_dict(), **sizes})).to(model.dtype)
    old = model.state_dict()
    state = {name: value.clone() for name, value in old.items() if not name.startswith(f"{STACK}.")}
    for target, block in enumerate(order):
        prefix = f"{STACK}.{block if block >= 0 else ~block}."
        for name, value in old.items():
            if name.startswith(prefix):
                silent = block < 0 and name.endswith(WRITERS)
                state[f"{STACK}.{target}.{name.removeprefix(prefix)}"] = (
                    torch.zeros_like(value) if silent else value.clone()
                )
    if change is not None:
        change(state)
    new.load_state_dict(state)
    new.save_pretrained(place)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(source / name, place / name)
    return place


def correspondence(source, order):
    """Which block of ``order`` is which of the ``source``, of so many blocks."""
    from graftkit.architecture.correspondence import Correspondence
    from graftkit.architecture.index_map import IndexMap

    runs = tuple((place, block, 1) for place, block in enumerate(order) if block >= 0)
    return Correspondence(blocks=IndexMap(source, len(order), runs), stack=STACK)
