"""Run a model again and let every part that a change cannot reach answer from memory.

In one forward the inputs and outputs of chosen modules are remembered. In later forwards, with one module
changed, each of the others that receives the very inputs it had then answers with what it returned then:
all of the other tower, all blocks before the change, and inside the changed block what precedes the change.
Nothing is assumed about the architecture, because inputs are compared by value; and since a module's output
is a function of its inputs and its parameters (in eval mode), the results are those of a full forward.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves, tree_map_only

__all__ = ["Memory", "inside", "outside", "replaced_forward"]

T = TypeVar("T")

# What may be an argument or a result: besides tensors, what compares by value and cannot be written into.
_COMPARABLE = (Tensor, type(None), bool, int, float, str, torch.dtype, torch.device)


def outside(model: nn.Module, blocks: Iterable[nn.Module]) -> list[nn.Module]:
    """Every module of the model that is not part of a block; the blocks themselves are listed too."""
    within = {part for block in blocks for part in inside(block)}
    return [module for module in model.modules() if module is not model and module not in within]


def inside(block: nn.Module) -> list[nn.Module]:
    """Every module that is part of the block, without the block itself."""
    return [module for module in block.modules() if module is not block]


_UNSET = object()


@contextmanager
def replaced_forward(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Replace one module's forward for a while, also one that hangs on the instance already."""
    before = vars(module).get("forward", _UNSET)
    object.__setattr__(module, "forward", forward)
    try:
        yield
    finally:
        if before is _UNSET:
            object.__delattr__(module, "forward")
        else:
            object.__setattr__(module, "forward", before)


class Memory:
    """Inputs and outputs of some modules in one run, for later runs in which others have changed.

    Tensors are remembered by reference, which holds one activation a module remembered for as long as the
    memory lasts; only what the model writes into afterwards is copied. A module that is called several
    times answers each call. One that writes into its own inputs, or that takes or returns anything but
    tensors and plain values, always computes.

    Args:
        modules: what may answer; of several that contain each other the outermost that can does. Their
            submodules and parameters must stay the same objects for as long as the memory is used.

    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self._parts = {
            module: {id(part) for part in chain(module.modules(), module.parameters(), module.buffers())}
            for module in modules
        }
        self._calls: dict[nn.Module, deque[_Call]] = {}
        self._copying: set[nn.Module] = set()
        self._declined: set[nn.Module] = set()

    def record(self, run: Callable[[], T]) -> T:
        """Forget everything, remember this run, and return what it returns.

        It is run again if it writes into remembered tensors, which then have to be copied.
        """
        while True:
            self._calls = {module: deque() for module in self._parts if module not in self._declined}
            with ExitStack() as stack:
                stack.enter_context(torch.no_grad())
                for module in self._calls:
                    forward = partial(self._remember, module, module.forward)
                    stack.enter_context(replaced_forward(module, forward))
                result = run()
            for module in self._declined:
                self._calls.pop(module, None)
            written = [m for m, calls in self._calls.items() if not all(call.intact() for call in calls)]
            if not written:
                return result
            self._copying.update(written)

    @contextmanager
    def answering(self, changed: Iterable[nn.Module] = ()) -> Iterator[None]:
        """Let the modules answer from memory in here.

        Args:
            changed: modules that compute something else than when they were recorded. Whatever contains one
                of them, or shares a parameter with one, computes.

        """
        touched = {id(part) for module in changed for part in (*module.modules(), *module.parameters())}
        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            for module, calls in self._calls.items():
                if touched.isdisjoint(self._parts[module]):
                    stack.enter_context(replaced_forward(module, partial(_answer, calls, module.forward)))
            yield

    def _remember(self, module: nn.Module, compute: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        inputs, form = tree_flatten((args, kwargs))
        copying = module in self._copying
        seen = _kept(inputs, copying)
        before = _states(inputs)
        output = compute(*args, **kwargs)
        returned = tree_leaves(output)
        # an answer writes into nothing, and a copy is not written into along with what it was copied from
        repeatable = not copying or (
            all(map(_same, seen, inputs)) and _storages(inputs).isdisjoint(_storages(returned))
        )
        if repeatable and all(isinstance(leaf, _COMPARABLE) for leaf in (*inputs, *returned)):
            states = [] if copying else before + _states(returned)
            self._calls[module].append(_Call(seen, form, _kept(output, copying), copying, states))
        else:
            self._declined.add(module)
        return output


# A tensor, how often it has been written into (unknown for inference tensors), and where its data lie.
_State = tuple[Tensor, int | None, int]


@dataclass
class _Call:
    """One call of a module: its flattened inputs, its output, and the state of the tensors in both."""

    inputs: list[Any]
    form: TreeSpec
    output: Any
    copied: bool
    states: list[_State]

    def intact(self) -> bool:
        """Whether nobody has written into a remembered tensor, or given it other data."""
        return all(
            version is not None and (version, data) == _state(tensor) for tensor, version, data in self.states
        )


def _answer(calls: deque[_Call], compute: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    inputs, form = tree_flatten((args, kwargs))
    for place, call in enumerate(calls):
        if call.form == form and call.intact() and all(map(_same, call.inputs, inputs)):
            calls.rotate(-place - 1)  # the next call probably equals the one that followed this
            return _kept(call.output, call.copied)
    return compute(*args, **kwargs)


def _same(remembered: Any, given: Any) -> bool:
    if type(remembered) is not type(given):
        return False
    if not isinstance(remembered, Tensor):
        return bool(remembered == given)
    # strides too: another layout may take another kernel, which rounds otherwise
    return remembered is given or (
        (remembered.shape, remembered.dtype, remembered.device, remembered.stride())
        == (given.shape, given.dtype, given.device, given.stride())
        and torch.equal(remembered, given)
    )


def _kept(tree: Any, copying: bool) -> Any:
    """New containers around the tensors, or around copies of them."""
    return tree_map_only(Tensor, Tensor.clone if copying else _itself, tree)


def _itself(tensor: Tensor) -> Tensor:
    return tensor


def _state(tensor: Tensor) -> tuple[int | None, int]:
    return None if tensor.is_inference() else tensor._version, tensor.data_ptr()


def _states(leaves: Iterable[Any]) -> list[_State]:
    return [(leaf, *_state(leaf)) for leaf in leaves if isinstance(leaf, Tensor)]


def _storages(leaves: Iterable[Any]) -> set[int]:
    return {leaf.untyped_storage().data_ptr() for leaf in leaves if isinstance(leaf, Tensor)}
