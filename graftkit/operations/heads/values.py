"""The values of a new head, computed when they are written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from graftkit.architecture.fresh_values import own_values
from graftkit.architecture.head import Head, HeadTensor
from graftkit.architecture.parameters import layout_of
from graftkit.checkpoint.computed import TensorGroup
from graftkit.checkpoint.reading import read_tensor, torch_dtype
from graftkit.checkpoint.tensors import LazyTensor
from graftkit.initializers.fans import LINEAR, Layout
from graftkit.initializers.make import ModelFacts, make
from graftkit.initializers.matched import row_norms
from graftkit.initializers.seeding import generator_for, seed_of
from graftkit.recipe import ReplaceHead
from graftkit.recipe.head_schemes import HeadNormal, HeadZeros
from graftkit.recipe.weight_schemes import Matched, WeightNormal

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass
class HeadMaker:
    """Makes each tensor of a head on demand, once; ``dtype`` is the safetensors tag that all of them get.

    ``seed`` is the recipe's seed and the operation's place: with the tensor's name it decides whatever is sampled.
    ``fitted`` holds tensors that were copied or computed from texts, and ``feature_norm`` what a target for the logits is over;
    ``trained_rows`` the trained tensors from whose rows ``matched`` takes the norms.
    """

    spec: ReplaceHead
    head: Head
    dtype: str
    seed: tuple[int, int]
    fitted: dict[str, Tensor] = field(default_factory=dict)
    feature_norm: float | None = None
    trained_rows: Mapping[str, LazyTensor] = field(default_factory=dict)

    def tensor(self, tensor: HeadTensor, dtype: str) -> LazyTensor:
        """The lazy tensor of one part of the head."""
        return TensorGroup(lambda: (self.value(tensor),)).tensor(0, dtype, tensor.shape)

    def value(self, tensor: HeadTensor) -> Tensor:
        """The tensor in its dtype. *Shape:* ``tensor.shape``."""
        dtype = torch_dtype(self.dtype)
        if tensor.name in self.fitted:
            return self.fitted[tensor.name]
        if tensor.part == "projection":
            return self._projection(tensor, dtype)
        if tensor.part == "projection_bias":
            return self._bias(tensor).to(dtype)
        layout = layout_of(self.head.skeleton, tensor.name)
        if layout is not None:
            return self._values(self.spec.inner_init, tensor, dtype, layout, self._facts())
        own = self._class_values(tensor)
        return own.to(dtype) if own.is_floating_point() else own

    def _values(self, scheme: Any, tensor: HeadTensor, dtype: torch.dtype, layout: Layout, facts: ModelFacts) -> Tensor:
        if isinstance(scheme, Matched):
            facts = replace(facts, norms=row_norms(read_tensor(self.trained_rows[tensor.name]), layout))
        return make(scheme, tensor.shape, dtype, layout, generator_for(*self.seed, tensor.name), facts)

    def _class_values(self, tensor: HeadTensor) -> Tensor:
        """The values of what is no linear map: 0 for biases and counters, else what the class gives a new model, such as 1 for norms.

        Where the class says nothing, a matrix is normal, and a vector 1 if it is a weight or a variance, else 0.
        """
        import torch

        skeleton, leaf = self.head.skeleton, tensor.name.rpartition(".")[2]
        dtype = skeleton.model.state_dict()[tensor.name].dtype
        if leaf == "bias" or not dtype.is_floating_point:
            return torch.zeros(tensor.shape, dtype=dtype)
        own = own_values(skeleton, tensor.name, seed_of(*self.seed, tensor.name))
        if own is None and len(tensor.shape) > 1:
            return self._values(WeightNormal(), tensor, torch.float32, LINEAR, self._facts())
        return torch.full(tensor.shape, float(leaf in ("weight", "running_var"))) if own is None else own

    def _facts(self, *, readout: bool = False) -> ModelFacts:
        config = self.head.skeleton.model.config
        text = config.get_text_config()
        std = getattr(config, "initializer_range", None) or getattr(text, "initializer_range", None)
        layers, width = getattr(text, "num_hidden_layers", None), getattr(text, "hidden_size", None)
        facts = ModelFacts(layers=layers, width=width, readout=readout)
        return facts if std is None else ModelFacts(float(std), layers, width, readout=readout)

    def _projection(self, tensor: HeadTensor, dtype: torch.dtype) -> Tensor:
        import torch

        scheme: Any = self.spec.init
        if isinstance(scheme, HeadZeros):
            return torch.zeros(tensor.shape, dtype=dtype)
        if isinstance(scheme, HeadNormal):
            std = scheme.std
            if scheme.target_logit_std is not None and self.feature_norm is not None:
                std = scheme.target_logit_std / self.feature_norm
            scheme = WeightNormal(std=std)
        layout = layout_of(self.head.skeleton, tensor.name) or LINEAR
        return self._values(scheme, tensor, dtype, layout, self._facts(readout=True))

    def _bias(self, tensor: HeadTensor) -> Tensor:
        """The bias in float64: zero, or the one whose first logits give the class prior."""
        import torch

        scheme = self.spec.init
        if not isinstance(scheme, HeadZeros) or not scheme.class_prior:
            return torch.zeros(tensor.shape, dtype=torch.float64)
        prior = torch.tensor(scheme.class_prior, dtype=torch.float64).expand(tensor.shape)
        return prior.logit() if self.spec.problem_type == "multi_label_classification" else prior.log()
