"""What stands below autograd and sees every call of ATen's: the base of all such modes here."""

from __future__ import annotations

from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["DispatchMode"]


class DispatchMode(TorchDispatchMode):
    """A dispatch mode in which nothing is compiled: a call goes straight to it.

    Torch's own would go by ``torch._dynamo``, to keep that out: a second to import, and at each
    call as much as the call.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """No: nothing here is traced."""
        return False
