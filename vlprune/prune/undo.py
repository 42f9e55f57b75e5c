"""Parameters as they were, to put them back if pruning ends early."""

from __future__ import annotations

from torch import Tensor

__all__ = ["Undo"]


class Undo:
    """Copies of parameters from before they were changed.

    Args:
        offload: keep the copies in CPU memory.

    """

    def __init__(self, offload: bool = False) -> None:
        self._offload = offload
        self._kept: dict[Tensor, Tensor] = {}

    def keep(self, *parameters: Tensor | None) -> None:
        """Remember these before they change; the first values count."""
        for parameter in parameters:
            if parameter is not None and parameter not in self._kept:
                place = "cpu" if self._offload else parameter.device
                self._kept[parameter] = parameter.detach().to(place, copy=True)

    @property
    def changed(self) -> tuple[Tensor, ...]:
        """The parameters, in the order in which they were first to change."""
        return tuple(self._kept)

    def restore(self) -> None:
        """Give every parameter its values back."""
        for parameter, values in self._kept.items():
            parameter.data.copy_(values)
