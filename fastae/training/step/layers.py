"""Changes a model in place: its tensors, or layers that are replaced by others with the same weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

from torch import Tensor, nn

Layer = TypeVar("Layer", bound=nn.Module)


def set_tensors(model: nn.Module, state: Mapping[str, Tensor], buffers: Mapping[str, Tensor]) -> None:
    """Sets a model's state dict and buffers in place, since what was compiled or captured holds the tensors.

    A buffer need not be in the state dict.
    """
    model.load_state_dict(state)
    for name, value in buffers.items():
        model.get_buffer(name).copy_(value)


def replace_layers(model: nn.Module, kind: type[Layer], make: Callable[[Layer], nn.Module]) -> int:
    """Replaces each layer of the class `kind` by `make(layer)`. The state dict keeps its names.

    Args:
        model: the model, which is changed in place.
        kind: the class. Layers of derived classes stay.
        make: makes the new layer, whose class must not be `kind`.

    Returns:
        How many layers were replaced. A layer that stands in two places is one.

    Raises:
        RuntimeError: a layer of the class is left, for example the model itself.
    """
    replaced: dict[int, nn.Module] = {}
    for name, layer in list(model.named_modules(remove_duplicate=False)):
        if name and type(layer) is kind:
            model.set_submodule(name, replaced.setdefault(id(layer), make(layer)))
    if left := [name for name, layer in model.named_modules() if type(layer) is kind]:
        raise RuntimeError(f"{kind.__name__} was not replaced: {', '.join(left) or 'the model itself'}")
    return len(replaced)
