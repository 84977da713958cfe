"""The values of a new head, computed when they are written."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from graftkit.architecture.head import Head, HeadTensor
from graftkit.checkpoint.reading import torch_dtype
from graftkit.initializers.fans import CONV1D, EMBEDDING, LINEAR, Layout, conv
from graftkit.initializers.making import Surroundings, make
from graftkit.initializers.seeding import generator_for
from graftkit.recipe import ReplaceHead
from graftkit.recipe.head_schemes import HeadNormal, HeadZeros
from graftkit.recipe.weight_schemes import WeightNormal


@dataclass
class HeadMaker:
    """Makes each tensor of a head on demand, once; ``dtype`` is the safetensors tag that all of them get.

    ``seed`` is the recipe's seed and the operation's place: with the tensor's name it decides whatever is sampled.
    ``fitted`` holds tensors that were copied or computed from texts, and ``feature_norm`` what a target for the logits is over.
    """

    spec: ReplaceHead
    head: Head
    dtype: str
    seed: tuple[int, int]
    fitted: dict[str, Any] = field(default_factory=dict)
    feature_norm: float | None = None
    _bytes: dict[str, memoryview] = field(default_factory=dict)
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def producer(self, tensor: HeadTensor) -> Callable[[], memoryview]:
        """A function that returns the tensor's bytes, computed at the first call."""

        def produce() -> memoryview:
            import torch

            with self._lock:
                if tensor.name not in self._bytes:
                    made = self.value(tensor).contiguous()
                    self._bytes[tensor.name] = made.reshape(-1).view(torch.uint8).numpy().data
                return self._bytes[tensor.name]

        return produce

    def value(self, tensor: HeadTensor) -> Any:
        """The tensor in its dtype. *Shape:* ``tensor.shape``."""
        dtype = torch_dtype(self.dtype)
        if tensor.name in self.fitted:
            return self.fitted[tensor.name]
        if tensor.part == "projection":
            return self._projection(tensor, dtype)
        if tensor.part == "projection_bias":
            return self._bias(tensor).to(dtype)
        module = owner(self.head.skeleton.model, tensor.name)
        if len(tensor.shape) > 1:
            scheme = self.spec.inner_init if is_map(module) else WeightNormal()
            return make(scheme, tensor.shape, dtype, layout_of(module), self._generator(tensor), self._around())
        own = constant_of(self.head.skeleton.model, module, tensor)
        return own.to(dtype) if own.is_floating_point() else own

    def _generator(self, tensor: HeadTensor) -> Any:
        return generator_for(*self.seed, tensor.name)

    def _around(self, *, readout: bool = False) -> Surroundings:
        config = self.head.skeleton.model.config
        text = config.get_text_config()
        std = getattr(config, "initializer_range", None) or getattr(text, "initializer_range", None)
        layers, width = getattr(text, "num_hidden_layers", None), getattr(text, "hidden_size", None)
        around = Surroundings(layers=layers, width=width, readout=readout)
        return around if std is None else Surroundings(float(std), layers, width, readout=readout)

    def _projection(self, tensor: HeadTensor, dtype: Any) -> Any:
        import torch

        module = owner(self.head.skeleton.model, tensor.name)
        generator, around = self._generator(tensor), self._around(readout=True)
        match self.spec.init:
            case HeadZeros():
                return torch.zeros(tensor.shape, dtype=dtype)
            case HeadNormal(std=std, target_logit_std=target):
                if target is not None and self.feature_norm is not None:
                    std = target / self.feature_norm
                return make(WeightNormal(std=std), tensor.shape, dtype, layout_of(module), generator, around)
            case scheme:
                return make(scheme, tensor.shape, dtype, layout_of(module), generator, around)  # type: ignore[arg-type]

    def _bias(self, tensor: HeadTensor) -> Any:
        """The bias in float64: zero, or with a prior what makes the first logits say just that."""
        import torch

        scheme = self.spec.init
        if not isinstance(scheme, HeadZeros) or not scheme.class_prior:
            return torch.zeros(tensor.shape, dtype=torch.float64)
        prior = torch.tensor(scheme.class_prior, dtype=torch.float64).expand(tensor.shape)
        return prior.logit() if self.spec.problem_type == "multi_label_classification" else prior.log()


def owner(model: Any, name: str) -> Any:
    """The module that holds the tensor ``name``."""
    return model.get_submodule(name.rpartition(".")[0])


def is_map(module: Any) -> bool:
    """Whether a module is one of those whose matrix has fans: linear maps, convolutions, lookups."""
    import torch
    from transformers.pytorch_utils import Conv1D

    kinds = (torch.nn.Linear, torch.nn.Embedding, torch.nn.modules.conv._ConvNd, Conv1D)  # noqa: SLF001 - their one base
    return isinstance(module, kinds)


def layout_of(module: Any) -> Layout:
    """How a module's matrix lies."""
    import torch
    from transformers.pytorch_utils import Conv1D

    if isinstance(module, Conv1D):
        return CONV1D
    if isinstance(module, torch.nn.Embedding):
        return EMBEDDING
    return conv(module.groups) if isinstance(module, torch.nn.modules.conv._ConvNd) else LINEAR  # noqa: SLF001 - as above


def constant_of(model: Any, module: Any, tensor: HeadTensor) -> Any:
    """A vector as the class itself begins it: 0 for biases, 1 for norms (0 for those that add 1 themselves).

    The module alone is built for real and given to the class's own ``_init_weights``; what that leaves alone is 1 for a
    weight or a variance, else 0. *Shape:* ``tensor.shape``.
    """
    import torch

    leaf = tensor.name.rpartition(".")[2]
    real = copy.deepcopy(module).to_empty(device="cpu", recurse=False)
    value = {**dict(real.named_parameters(recurse=False)), **dict(real.named_buffers(recurse=False))}[leaf].detach()
    if leaf == "bias" or not value.is_floating_point():
        return torch.zeros_like(value)
    value.fill_(float("nan"))
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        model._init_weights(real)  # noqa: SLF001 - the class's own initialisation
    if value.isfinite().all():
        return value
    return torch.full_like(value, float(leaf in ("weight", "running_var")))
