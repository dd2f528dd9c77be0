"""An accelerator emulated on the CPU: a device of its own, strict as a real one.

Its tensors are wrappers around tensors of the CPU. An operation on tensors of both devices fails as
it does on a GPU, every transfer to the host is counted, reading is not free, and the numbers are
the CPU's. So what goes wrong on an accelerator only (a constant made on the wrong device, a hidden
read) goes wrong here, where there is none. It stands on torch's hook for devices written in Python,
which is experimental: `pytest --device emulated` uses it.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from emulated_default import DefaultDevice
from emulated_queue import Launches, Side, called, place_of, refused_while_captured
from torch import Tensor
from torch.overrides import TorchFunctionMode, handle_torch_function, has_torch_function_unary
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["DEVICE", "DefaultDevice", "emulated", "in_threads", "prepare", "transfers"]

DEVICE = "emulated"
_HOST = torch.device("cpu")
# Operations whose result has a size that depends on values: a real device waits for the number.
_SIZED = {
    "aten::nonzero", "aten::masked_select", "aten::unique_dim", "aten::_unique", "aten::_unique2",
    "aten::equal", "aten::is_nonzero", "aten::repeat_interleave.Tensor", "aten::bincount",
}  # fmt: skip
# A real device takes an index that lies on the host, and moves it.
_INDEXED = {"aten::index", "aten::index_put_", "aten::_index_put_impl_", "aten::index_put"}
# What takes one number of the host beside its tensors, apart from what torch tags as pointwise.
_NUMBER = {
    "aten::floor_divide", "aten::fill", "aten::fill_", "aten::masked_fill", "aten::masked_fill_",
    "aten::_foreach_mul", "aten::_foreach_mul_", "aten::_foreach_add", "aten::_foreach_add_",
    "aten::_foreach_div", "aten::_foreach_div_", "aten::index_fill", "aten::index_fill_",
}  # fmt: skip

#: the names of the operations that carried something to the host
transfers: list[str] = []
# What makes tensors of lists of Python numbers, below the reach of the modes.
_OF_LISTS = {Tensor.__getitem__, Tensor.__setitem__, Tensor.new_tensor}
_ready = False
_device: torch.device | None = None  # that has its name once torch knows it

_inside: list[bool] = []  # whether the device is in use
_Generator = torch.Generator


def _told(method: Any) -> Any:
    """What torch implements in C: modes that stand above tensors hear of it."""

    @functools.wraps(method)
    def call(self: Tensor, **kwargs: Any) -> Any:
        if has_torch_function_unary(self):
            return handle_torch_function(call, (self,), self, **kwargs)
        return method(self, **kwargs)

    return call


class _There(Tensor):
    """A tensor of the emulated device."""

    raw: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, raw: Tensor) -> _There:
        layout = raw.layout
        dense = layout is torch.strided
        made = Tensor._make_wrapper_subclass(
            cls,
            raw.shape,
            strides=raw.stride() if dense else None,
            storage_offset=raw.storage_offset() if dense else None,
            dtype=raw.dtype,
            layout=layout,
            device=torch.device(DEVICE, 0) if _device is None else _device,
        )
        made.raw = raw
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _call(func, args, kwargs or {})

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"{self.raw!r} on {DEVICE}"

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        if id(self) not in memo:
            made = self.detach().clone()
            if isinstance(self, torch.nn.Parameter):
                made = torch.nn.Parameter(made, self.requires_grad)
            memo[id(self)] = made.requires_grad_(self.requires_grad)
        return memo[id(self)]

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _restored, (self.detach().cpu(), self.requires_grad)

    @_told
    def tolist(self) -> Any:
        return self._read("tolist").tolist()

    @_told
    def numpy(self, *, force: bool = False) -> Any:
        if not force:
            raise TypeError(f"a tensor on {DEVICE} is no array: use Tensor.cpu() first")
        return self._read("numpy").numpy()

    def _read(self, name: str) -> Tensor:
        _moved(name)
        return called(torch.ops.aten.clone.default, [self.raw], {}, [self])

    @_told
    def data_ptr(self) -> int:
        return self.raw.data_ptr()

    @_told
    def untyped_storage(self) -> Any:
        return self.raw.untyped_storage()  # the wrapper's own is empty, and a view has another

    @property
    def data(self) -> Tensor:
        return Tensor.data.__get__(self)  # type: ignore[no-any-return,attr-defined]

    @data.setter
    def data(self, value: Tensor) -> None:
        Tensor.data.__set__(self, value)  # type: ignore[attr-defined]
        self.raw = value.raw  # type: ignore[attr-defined]


_There.__name__ = "Tensor"  # as a message about a tensor of a GPU calls it


def _restored(raw: Tensor, requires_grad: bool) -> Tensor:
    """A tensor of a file, where it was."""
    return _There(raw).requires_grad_(requires_grad)


def _moved(name: str) -> None:
    refused_while_captured(name)
    transfers.append(name)


def _there(value: Any) -> Any:
    return _There(value) if isinstance(value, Tensor) and not isinstance(value, _There) else value


def _host(value: Any, there: list[_There], here: list[Tensor]) -> Any:
    """An argument on the host; its tensors of the device and of the host go into the two lists."""
    if isinstance(value, _There):
        there.append(value)
        return value.raw
    if isinstance(value, Tensor):
        here.append(value)
    elif isinstance(value, (list, tuple)):
        return [_host(v, there, here) for v in value]
    return value


@functools.cache
def _name(func: Any) -> str:
    return str(func._schema.name)


def _call(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    name = _name(func)
    there: list[_There] = []
    here: list[Tensor] = []
    hosts = [_host(value, there, here) for value in args]
    named = {key: _host(value, there, here) for key, value in kwargs.items()}
    device = kwargs.get("device")
    if device is not None and torch.device(device).type == DEVICE:
        named.pop("pin_memory", None)
        if here:
            refused_while_captured("a copy from the host")
        made = called(func, hosts, {**named, "device": _HOST}, there)
        if name == "aten::_efficientzerotensor":  # has no memory, which only torch's own know of
            made = torch.zeros_like(made)
        given = [t for t in (*here, *(t.raw for t in there)) if t.layout == made.layout]
        if made.layout == torch.strided and place_of(made) in map(place_of, given):
            made = made.clone()  # a move is a copy
        return _there(made)
    if not there:
        return func(*args, **kwargs)
    if name == "aten::_local_scalar_dense" or (name == "aten::_to_copy" and device is not None):
        _moved(name)
        return called(func, hosts, named, there)
    if name == "aten::copy_":
        if here:
            refused_while_captured(name)
        if not isinstance(args[0], _There):
            transfers.append(name)
        called(func, hosts, named, there)
        return args[0]
    if name in _INDEXED:
        if name == "aten::index" and any(
            isinstance(at, Tensor) and at.dtype == torch.bool for at in args[1]
        ):
            _moved(name)
    else:
        number = torch.Tag.pointwise in func.tags or name in _NUMBER
        for tensor in here:
            if tensor.dim() or not number:
                raise RuntimeError(
                    f"{name}: a tensor {tuple(tensor.shape)} on the CPU beside tensors on {DEVICE}"
                )
    if name in _SIZED:
        _moved(name)
    made = called(func, hosts, named, there)
    if torch.Tag.inplace_view in func.tags:  # the wrapper has a shape of its own
        before = torch._C._meta_in_tls_dispatch_include()
        with no_dispatch():
            torch._C._set_meta_in_tls_dispatch_include(True)
            try:
                func(*args, **kwargs)
            finally:
                torch._C._set_meta_in_tls_dispatch_include(before)
    given = {id(t.raw): t for t in there}  # what an operation in place gives back is what it got
    if isinstance(made, (list, tuple)):
        return type(made)(given[id(v)] if id(v) in given else _there(v) for v in made)
    return given[id(made)] if id(made) in given else _there(made)


class _Factories(TorchDispatchMode):
    """Calls that get no tensor, but the device as an argument."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """No: nothing here is traced, and to skip takes time at every call."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _call(func, args, kwargs or {})


class _Literals(TorchFunctionMode):
    """Tensors made of Python numbers, which torch makes below the reach of the mode above."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not kwargs and func not in _OF_LISTS:
            return func(*args)
        kwargs = kwargs or {}
        device = kwargs.get("device")
        if kwargs.get("generator") is not None:
            _drawn_where(func, args, kwargs)
        if func in (Tensor.__getitem__, Tensor.__setitem__) and isinstance(args[0], _There):
            at = args[1] if type(args[1]) is tuple else (args[1],)
            there = (
                torch.tensor(list(i)).to(args[0].device) if type(i) in (list, range) else i
                for i in at
            )
            return func(args[0], tuple(there), *args[2:])
        if func is Tensor.new_tensor and isinstance(args[0], _There):
            dtype = kwargs.get("dtype") or args[0].dtype
            return torch.tensor(args[1], dtype=dtype).to(kwargs.get("device", args[0].device))
        if func in (torch.tensor, torch.as_tensor, torch.asarray) and device is not None:
            if torch.device(device).type == DEVICE and not isinstance(args[0], _There):
                return func(*args, **{**kwargs, "device": "cpu"}).to(device)
        return func(*args, **kwargs)


def _drawn_where(func: Any, args: Any, kwargs: dict[str, Any]) -> None:
    """Raises where a generator is of another device than what it draws."""
    given = [v.device for v in args if isinstance(v, Tensor)]
    place = kwargs.get("device") or (given[0] if given else _HOST)
    generator = kwargs["generator"].device
    if torch.device(place).type != generator.type:
        raise RuntimeError(
            f"Expected a {torch.device(place).type!r} device type for generator but found "
            f"{generator.type!r} ({getattr(func, '__name__', func)})"
        )


class _GeneratorThere(_Generator):  # type: ignore[misc]
    """The emulated device draws what the CPU draws."""

    @property
    def device(self) -> torch.device:
        return torch.device(DEVICE, 0)


class _AnyGenerator(type):
    def __instancecheck__(cls, value: Any) -> bool:
        return isinstance(value, _Generator)


class _GeneratorHere(metaclass=_AnyGenerator):
    def __new__(cls, device: Any = "cpu") -> Any:
        there = torch.device(device).type == DEVICE
        return _GeneratorThere(device=_HOST) if there else _Generator(device)


def prepare() -> None:
    """Makes the device known to torch: before the first backward of the process, or never."""
    global _ready, _device
    if not _ready:
        from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

        from kfac_lab.core.accelerators import ACCELERATORS, Accelerator

        _setup_privateuseone_for_python_backend(DEVICE)
        _device = torch.device(DEVICE, 0)
        module = torch.get_device_module(DEVICE)  # what is drawn there is drawn by the host
        module.get_rng_state = lambda device=None: torch.get_rng_state()
        module.set_rng_state = lambda state, device=None: torch.set_rng_state(state)
        torch.serialization.add_safe_globals([_restored])
        ACCELERATORS[DEVICE] = Accelerator(
            lambda: bool(_inside),
            lambda device: Launches(),
            lambda device: Side(),
            lambda device: frozenset({"bfloat16"}),
        )
        _ready = True


@contextmanager
def in_threads(device: torch.device) -> Iterator[None]:
    """Threads that are begun inside have the modes of this one, which torch keeps for each."""
    run = threading.Thread.run

    def with_modes(self: threading.Thread) -> None:
        with ExitStack() as modes:
            if device.type == DEVICE:
                modes.enter_context(_Factories())
                modes.enter_context(_Literals())
            modes.enter_context(DefaultDevice(device))
            run(self)

    threading.Thread.run = with_modes  # type: ignore[method-assign]
    try:
        yield
    finally:
        threading.Thread.run = run  # type: ignore[method-assign]


@contextmanager
def emulated() -> Iterator[torch.device]:
    """Inside, ``torch.device("emulated")`` works."""
    prepare()
    torch.Generator = _GeneratorHere  # type: ignore[misc,assignment]
    _inside.append(True)
    try:
        with _Factories(), _Literals():
            yield torch.device(DEVICE, 0)
    finally:
        _inside.pop()
        torch.Generator = _Generator  # type: ignore[misc]
