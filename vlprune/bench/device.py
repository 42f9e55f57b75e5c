"""Calls as the device alone is timed: as they are on a CPU, as replayed CUDA graphs on a GPU."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from .case import Call, Work

__all__ = ["graphed", "timed_calls"]


def timed_calls(work: Work, device: torch.device) -> dict[str, Call]:
    """The calls of a case by name; on a GPU in CUDA graphs, but for those that wait for the device."""
    if device.type != "cuda":
        return dict(work.calls)
    return {name: call if name in work.waits else graphed([call]) for name, call in work.calls.items()}


def graphed(calls: Iterable[Call]) -> Call:
    """Capture calls in a CUDA graph, so that what is timed is the device alone; they run once before."""
    calls = list(calls)
    stream: Any = torch.cuda.Stream
    side = stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for call in calls:
            call()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph, stream_before = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
    try:
        # What is captured must outlive the graph's replays: operands are held by the calls themselves.
        with torch.cuda.graph(graph):
            for call in calls:
                call()
    finally:
        # A capture that cannot be ended leaves its own stream as the current one.
        torch.cuda.set_stream(stream_before)

    def replay(held: list[Call] = calls) -> None:
        graph.replay()

    return replay
