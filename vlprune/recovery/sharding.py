"""Weights, masks, gradients and optimizer states in parts, one to a rank: PyTorch's FSDP2.

What trains is a copy of the student's modules, whose parameters are DTensors sharded by rows and put together
block by block while a block runs. The student itself keeps its modules and parameters, which are empty for
that long: so afterwards it is an ordinary model, whatever FSDP2 did to the modules that it was given.
"""

from __future__ import annotations

import copy
import math
import weakref
from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .. import models
from ..distributed import send_from_first, sum_over_ranks
from ..models.running import model_device
from .objective import Objective
from .sparselora import SparseLoRALinear

__all__ = ["Sharded", "clip_norm_", "gathered", "local", "part_of"]

# FSDP2 of PyTorch 2.11 asks a gradient of every parameter, until it is told otherwise; 2.12's does not.
_SPREADS_BOOL = torch.__version__ >= "2.12"

_groups: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()


def local(tensor: Tensor) -> Tensor:
    """Return this rank's rows of a sharded tensor, as a view; any other tensor as it is."""
    own: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return own


def gathered(tensor: Tensor) -> Tensor:
    """Return all rows of a sharded tensor, for which every rank must ask; any other tensor as it is."""
    whole: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return whole


def part_of(whole: Tensor, like: Tensor) -> Tensor:
    """A tensor sharded as another one of its shape is, on its device; where that is whole, so is this."""
    whole = whole.to(like.device)
    if not hasattr(like, "to_local"):
        return whole
    from torch.distributed.tensor import DTensor, distribute_tensor

    sharding: Any = like
    mesh, placements = sharding.device_mesh, sharding.placements
    # every rank has the whole, so none waits for another
    spread = distribute_tensor(whole, mesh, placements, src_data_rank=None)
    # the rows alone, not a view that keeps the whole
    own: Tensor = DTensor.from_local(
        spread.to_local().clone(), mesh, placements, run_check=False, shape=whole.shape, stride=whole.stride()
    )
    return own


def clip_norm_(parameters: Iterable[nn.Parameter], limit: float) -> float:
    """Scale gradients down to a norm of `limit` and return the norm that all of them had together."""
    grads = [p.grad for p in parameters if p.grad is not None]
    spread = [local(grad) for grad in grads if local(grad) is not grad]
    whole = [grad for grad in grads if local(grad) is grad]
    norm = nn.utils.get_total_norm(whole)
    if spread:
        # float64, in which squares of large norms are finite
        squares = nn.utils.get_total_norm(spread).double() ** 2
        norm = (sum_over_ranks(squares) + norm.double() ** 2).sqrt()
    factor = (limit / (float(norm) + 1e-6)) if math.isfinite(limit) else 1.0
    if factor < 1:
        torch._foreach_mul_([*spread, *whole], factor)
    return float(norm)


class Sharded:
    """An objective whose student is spread over the ranks until `restore`.

    Every block of the towers is a unit that is put together while it runs; what is outside of them is
    together from the forward to the backward pass. Parameters without dimensions are whole on every rank.
    Weights that do not train and the masks of adapters are sharded like those that do; before PyTorch 2.12
    every rank has the masks whole.

    Args:
        objective: whose student every rank has; the first rank's values count.

    Attributes:
        module: what to call with a batch.
        student: the copy.
        whole: parameters that no rank shares with others: their gradients have to be averaged.

    """

    def __init__(self, objective: Objective) -> None:
        # heavy to import, and needed only here
        from torch.distributed.fsdp import fully_shard

        self._objective, self._student = objective, objective.student
        adapted = [(n, m) for n, m in self._student.named_modules() if isinstance(m, SparseLoRALinear)]
        self._own: dict[str, Tensor] = dict(self._student.named_parameters())
        send_from_first([*self._own.values(), *self._student.buffers()])
        blocks = _blocks(self._student)
        _refuse_shared(self._student, blocks)
        shared = {id(t): t for t in [*self._own.values(), *self._student.buffers()]}
        self.student: nn.Module = copy.deepcopy(self._student, shared)
        for name, layer in adapted if _SPREADS_BOOL else ():
            # FSDP2 spreads parameters alone
            module = self.student.get_submodule(name)
            del module.keep
            module.register_parameter("keep", nn.Parameter(layer.keep, requires_grad=False))
            self._own[f"{name}.keep"] = layer.keep
        named = dict(self.student.named_parameters())
        self.whole = {name: p for name, p in named.items() if p.dim() == 0}
        objective.student = self.student
        self.module: nn.Module = nn.Sequential(objective)
        options: dict[str, Any] = {
            "mesh": _mesh(model_device(self._student)),
            "ignored_params": set(self.whole.values()),
        }
        try:
            for name in blocks:
                fully_shard(self.student.get_submodule(name), **options)
                self._empty(name)
            fully_shard(self.module, **options)
            self._empty("")
        except (AssertionError, NotImplementedError, ValueError):
            # what FSDP2 says of the model, such as of weights that are not contiguous, it says on every rank
            self.restore()
            raise

    def _empty(self, block: str) -> None:
        """Free what the copy has in parts by now."""
        inside = f"{block}." if block else ""
        for name, parameter in self._own.items():
            if name.startswith(inside) and name not in self.whole:
                parameter.data = parameter.data.new_empty(0)

    @torch.no_grad()
    def restore(self) -> None:
        """Give the student all its weights and masks, on every rank; each must call this."""
        sharded: Mapping[str, Tensor] = dict(self.student.named_parameters())
        for name, parameter in self._own.items():
            parameter.data = gathered(sharded[name].detach())
        self._objective.student = self._student


def _mesh(device: torch.device) -> Any:
    """All ranks, in a group of their own that every training of the process takes.

    DTensor's caches keep the mesh of the first one, and with it its group and gloo's threads, past
    `destroy_process_group`. Were that the default group, a thread that lets go of the last tensor it was
    given while the interpreter ends would abort the process; this group has long been idle by then.
    """
    from torch.distributed.device_mesh import DeviceMesh

    world: Any = dist.group.WORLD
    if world not in _groups:
        # which would have PyTorch's own limit else, however long the ranks were told to wait
        wait = getattr(world._get_backend(device).options, "_timeout", None)
        _groups[world] = dist.new_group(timeout=wait)
    return DeviceMesh.from_group(_groups[world], device.type)


def _blocks(student: nn.Module) -> list[str]:
    """Names of the blocks in the order in which they run."""
    return [block.name for tower in models.view(student).towers.values() for block in tower.blocks]


def _refuse_shared(student: nn.Module, blocks: list[str]) -> None:
    owners: dict[Tensor, str] = {}
    for name, parameter in student.named_parameters(remove_duplicate=False):
        block = next((block for block in blocks if name.startswith(f"{block}.")), "")
        if owners.setdefault(parameter, block) != block:
            raise ValueError(
                f"shard: {name} is shared with {owners[parameter] or 'what is outside of the blocks'}, and "
                "FSDP2 cannot spread what blocks share; train with shard=False"
            )
