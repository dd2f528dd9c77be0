"""What a kind of device has beyond its kernels: launches of programs, streams, shorter products.

Steps on a device go as on any but the CPU: nothing of it is read that need not be. What only some
have stands here by the device's type, CUDA's alone; whoever emulates one enters it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from kfac_lab.core.program import Capture, CudaGraphs

__all__ = ["ACCELERATORS", "Accelerator", "CudaStream", "SideStream", "accelerator"]

AMPERE = 8, 0  # the compute capability from which there are TF32 and bfloat16 products


class SideStream(Protocol):
    """A queue of work beside the one of the steps."""

    def __call__(self) -> contextlib.AbstractContextManager[None]:
        """What is done inside follows what the steps have done so far, and they go on beside it."""
        ...

    def wait(self) -> None:
        """What the steps do from here on follows what has been done inside."""
        ...


@dataclass(frozen=True)
class Accelerator:
    """What there is on devices of a type.

    Attributes:
        available: whether there is one here.
        capture: makes what captures programs of one engine as launches.
        side: makes a stream beside the steps'.
        products: kinds of products shorter than float32's on a device.
    """

    available: Callable[[], bool]
    capture: Callable[[torch.device], Capture]
    side: Callable[[torch.device], SideStream]
    products: Callable[[torch.device], frozenset[str]]


class CudaStream:
    """A CUDA stream beside the one of the steps, and an event at the end of what is on it.

    Memory that is let go of goes back to the stream that made it, while the other may still use it.
    What this one has made the steps use; it is written again inside alone, which follows the steps.
    What the steps have made this one uses; it is let go of after :meth:`wait`, or by a step that
    drops what is being built, whatever it comes to. So no tensor has to be told of both.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: Any = None
        self._end: Any = None

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        """See ``SideStream``."""
        if self._stream is None:
            self._stream = torch.cuda.Stream(self._device)
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            try:
                yield
            finally:  # what was begun is waited for, also where not all of it was
                self._end = self._stream.record_event()

    def wait(self) -> None:
        """See ``SideStream``."""
        if self._end is not None:
            torch.cuda.current_stream(self._device).wait_event(self._end)


def _of_cuda(device: torch.device) -> frozenset[str]:
    if torch.cuda.get_device_capability(device) < AMPERE:
        return frozenset()
    return frozenset({"tf32", "bfloat16"})


#: by the type of a device
ACCELERATORS: dict[str, Accelerator] = {
    "cuda": Accelerator(torch.cuda.is_available, CudaGraphs, CudaStream, _of_cuda)
}


def accelerator(device: torch.device) -> Accelerator | None:
    """What there is on a device; None where it has none of it, as the CPU."""
    return ACCELERATORS.get(device.type)
