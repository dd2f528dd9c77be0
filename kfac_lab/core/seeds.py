"""Randomness as a function of (run seed, purpose, step): no generator state persists.

Purposes in use: ``batch`` and ``rows`` (always drawn on the CPU), ``targets`` (model samples),
``init`` (parameters) and ``model`` (the network's own dropout).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

__all__ = ["derive", "forked", "permutation", "uniforms"]


def derive(seed: int, purpose: str, step: int) -> int:
    """A 63-bit seed that depends on all three and on nothing else."""
    digest = hashlib.blake2b(f"{seed}/{purpose}/{step}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def permutation(seed: int, purpose: str, step: int, count: int) -> Tensor:
    """A permutation of ``count`` cases, ``[count]`` int64 on the CPU."""
    generator = torch.Generator().manual_seed(derive(seed, purpose, step))
    return torch.randperm(count, generator=generator)


def uniforms(
    seed: int,
    purpose: str,
    step: int,
    shape: Sequence[int],
    device: torch.device,
    dtype: torch.dtype,
) -> Tensor:
    """Uniforms in the open interval (0, 1), drawn on ``device``."""
    if device.type == "meta":  # shapes only: there is no meta generator
        return torch.empty(tuple(shape), device=device, dtype=dtype)
    generator = torch.Generator(device=device).manual_seed(derive(seed, purpose, step))
    drawn = torch.rand(tuple(shape), generator=generator, device=device, dtype=dtype)
    # Multiples of ε/2 below 1. A zero moves by one place: 2u − 1 must stay above −1 (erfinv).
    return drawn.clamp_(min=torch.finfo(dtype).eps / 2)


@contextmanager
def forked(seed: int, purpose: str, step: int, device: torch.device) -> Iterator[None]:
    """Inside, torch's global generators start at a derived seed; outside they are untouched."""
    cuda = device.type == "cuda"
    before = torch.get_rng_state(), torch.cuda.get_rng_state(device) if cuda else None
    try:
        try:
            value = derive(seed, purpose, step)
            torch.default_generator.manual_seed(value)
            if cuda:
                with torch.cuda.device(device):  # manual_seed means the current one
                    torch.cuda.manual_seed(value)
            yield
        finally:
            _restored(before, device)
    except BaseException:
        _restored(before, device)  # again: it may have come in the line above
        raise


def _restored(before: tuple[Tensor, Tensor | None], device: torch.device) -> None:
    cpu, cuda = before
    torch.set_rng_state(cpu)
    if cuda is not None:
        torch.cuda.set_rng_state(cuda, device)
