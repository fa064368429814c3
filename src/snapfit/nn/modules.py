"""Finding and replacing modules by qualified name: the only place that swaps parts of a model."""

from __future__ import annotations

from torch import nn

from snapfit.core.errors import SnapfitError


def find_module(model: nn.Module, name: str) -> nn.Module:
    """The module of a qualified name.

    Raises:
        SnapfitError: the model has none of that name.

    """
    try:
        return model.get_submodule(name)
    except AttributeError as error:
        raise SnapfitError(
            f"the model has no module {name!r}; the plan was made for another model"
        ) from error


def replace_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put `module` at the qualified `name`.

    Raises:
        SnapfitError: the model has no module of that name.

    """
    find_module(model, name)
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)
