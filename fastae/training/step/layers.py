"""Replaces layers of a model by others with the same weights, wherever in the model they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from torch import nn

Layer = TypeVar("Layer", bound=nn.Module)


def replace_layers(
    model: nn.Module, kind: type[Layer], make: Callable[[Layer], nn.Module], *, subclasses: bool = False
) -> int:
    """Replaces each layer of the class `kind` by `make(layer)`. The state dict keeps its names.

    Args:
        model: the model, which is changed in place.
        kind: the class.
        make: makes the new layer, whose class must not be `kind`.
        subclasses: whether layers of classes derived from `kind` are replaced, too.

    Returns:
        How many layers were replaced.

    Raises:
        RuntimeError: a layer of the class is left, for example the model itself, or one that is used under
        two
            names.
    """

    def is_meant(layer: nn.Module) -> bool:
        return isinstance(layer, kind) if subclasses else type(layer) is kind

    replaced: dict[int, nn.Module] = {}  # a layer that stands in two places stays one layer
    for name, layer in list(model.named_modules(remove_duplicate=False)):
        if name and is_meant(layer):
            other = replaced.setdefault(id(layer), make(layer))  # type: ignore[arg-type]
            model.set_submodule(name, other)
    if left := [name for name, layer in model.named_modules() if type(layer) is kind]:
        raise RuntimeError(f"{kind.__name__} was not replaced: {', '.join(left) or 'the model itself'}")
    return len(replaced)
