"""The parts of an adapter that peft has put into a model, in the order of its modules: the one walk over them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

#: What every name of a module in a peft model begins with.
PREFIX = "base_model.model."

#: The name of the only adapter, which peft leaves out of the file.
NAME = "default"


@dataclass(frozen=True, slots=True)
class LoraPart:
    """A LoRA layer of peft's, ``module``, and the name that it has in the model."""

    path: str
    module: Any

    @property
    def weight(self) -> str:
        """The name in memory of the weight that it adapts."""
        path = self.path
        while path.endswith(".base_layer"):  # several parameters of one module are wrapped one around the other
            path = path.removesuffix(".base_layer")
        return f"{path}.{getattr(self.module, 'parameter_name', 'weight')}"

    @property
    def on_parameter(self) -> bool:
        """Whether peft adapts a parameter of a module, such as fused experts, and not a whole layer."""
        return hasattr(self.module, "parameter_name")

    @property
    def on_table(self) -> bool:
        """Whether the weight is an embedding."""
        return NAME in self.module.lora_embedding_A

    @property
    def a(self) -> Tensor:
        """``(r, in)``, for experts ``(experts·r, in)``."""
        factor: Tensor = self.module.lora_embedding_A[NAME] if self.on_table else self.module.lora_A[NAME].weight
        return factor

    @property
    def b(self) -> Tensor:
        """``(out, r)``, for experts ``(out, r·experts)``."""
        factor: Tensor = self.module.lora_embedding_B[NAME] if self.on_table else self.module.lora_B[NAME].weight
        return factor

    @property
    def experts(self) -> int:
        """Into how many experts the factors fall."""
        return int(getattr(self.module, "num_experts", 1))

    @property
    def scaling(self) -> float:
        """What the product is multiplied with."""
        return float(self.module.scaling[NAME])

    @property
    def rank(self) -> int:
        """That of one expert."""
        return int(self.module.r[NAME])

    @property
    def fan_in_fan_out(self) -> bool:
        """Whether it is a linear layer whose weight lies as ``(in, out)``."""
        return bool(getattr(self.module, "fan_in_fan_out", False))

    @property
    def transposed(self) -> bool:
        """Whether the weight lies as ``(in, out)``, as those of tables do."""
        return self.fan_in_fan_out or self.on_table

    @property
    def base(self) -> nn.Module:
        """The layer without the adapter."""
        layer: nn.Module = self.module.get_base_layer()
        return layer

    def wide_factors(self) -> tuple[Tensor, Tensor]:
        """``a`` and ``b`` in float64."""
        return self.a.detach().double(), self.b.detach().double()

    def update(self) -> Tensor:
        """What a linear layer's weight gets added, in float64 and as the weight lies."""
        a, b = self.wide_factors()
        product = self.scaling * (b @ a)
        return product.T if self.transposed else product


@dataclass(frozen=True, slots=True)
class SavedPart:
    """A module that is trained and saved whole, and its name in the model."""

    path: str
    module: nn.Module


@dataclass(frozen=True, slots=True)
class TokensPart:
    """peft's ``layer`` that trains some rows of a ``table``, and the name of the table in the model."""

    path: str
    layer: Any
    table: nn.Module


def adapter_parts(model: nn.Module) -> Iterator[LoraPart | SavedPart | TokensPart]:
    """Yield every part of the adapter that peft has put into ``model``, outer modules before those inside."""
    from peft.tuners.lora.layer import LoraLayer
    from peft.utils.other import ModulesToSaveWrapper, TrainableTokensWrapper

    for path, module in model.named_modules():
        if isinstance(module, LoraLayer) and NAME in module.r:
            yield LoraPart(path, module)
        elif isinstance(module, ModulesToSaveWrapper):
            yield SavedPart(path, module.modules_to_save[NAME])
        elif isinstance(module, TrainableTokensWrapper):
            yield TokensPart(path, module.token_adapter, module.original_module)


def lora_parts(model: nn.Module) -> Iterator[LoraPart]:
    """Yield the LoRA layers among them."""
    return (part for part in adapter_parts(model) if isinstance(part, LoraPart))
