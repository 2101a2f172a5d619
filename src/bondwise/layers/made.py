"""The dense weight of a layer of terms, as code that reads ``layer.weight`` gets it."""

from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from bondwise.errors import SelectionError

_ABOUT = {  # answered without making the weight
    *("shape", "dtype", "layout", "ndim", "requires_grad"),
    *("is_sparse", "is_quantized", "itemsize", "nbytes", "grad", "grad_fn"),
    *("size", "dim", "numel", "nelement", "element_size", "stride", "is_contiguous", "__len__"),
    *("is_floating_point", "is_complex", "ndimension", "is_inference"),
}
_PLACE = ("device", "is_cuda", "is_meta", "is_cpu")
_WORK = object()
_IN_PLACE = {
    "__setitem__",
    "__delitem__",
    *(f"__i{name}__" for name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow")),
    *(f"__i{name}__" for name in ("and", "or", "xor", "lshift", "rshift", "matmul")),
}


class Made(Tensor):
    """A dense weight (out x in) that is made when something is done with it.

    Its shape, dtype and device are known beforehand. What is done with it is done with a tensor
    made from the layer's parameters, so that gradients reach them. It holds no numbers of its own:
    a write into it is refused.

    Args:
        make: gives the dense weight.
        like: has its dtype and device.
        shape: (out, in).
        asks: what ``requires_grad_`` does; None where it is detached.

    >>> from bondwise import TensorLinear, lowrank
    >>> layer = TensorLinear(lowrank(6, 4, 2))
    >>> layer.weight.shape, torch.equal(layer.weight + 0, layer.dense())
    (torch.Size([6, 4]), True)
    >>> layer.weight.data.zero_()
    Traceback (most recent call last):
    ...
    bondwise.errors.SelectionError: zero_ came for a weight that is made from terms when it is ...
    """

    make: Callable[[], Tensor]
    _asks: Callable[[bool], None] | None
    _like: Tensor
    _is_hf_initialized = True  # transformers draws no random weights for it

    @staticmethod
    def __new__(  # noqa: D102
        cls: "type[Made]",
        make: Callable[[], Tensor],
        like: Tensor,
        shape: Iterable[int],
        asks: Callable[[bool], None] | None = None,
    ) -> "Made":
        wrap: Any = Tensor._make_wrapper_subclass  # pyright: ignore
        graded = asks is not None and like.requires_grad
        # on meta, so that ``other.data = made`` is refused by torch and not taken without numbers
        made = wrap(cls, tuple(shape), dtype=like.dtype, device="meta", requires_grad=graded)
        made.make, made._asks, made._like = make, asks, like
        return cast(Made, made)

    @classmethod
    def __torch_function__(
        cls,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        name, what = _named(func)
        kwargs = kwargs or {}
        first = args[0] if args else next(iter(kwargs.values()), None)
        if isinstance(first, Made):
            answer = first._answer(func, name, what, args, kwargs)
            if answer is not _WORK:
                return answer
        if _writes(name, what, first) or _holds(kwargs.get("out")):
            raise SelectionError(
                f"{name} came for a weight that is made from terms when it is read, which holds no "
                "numbers to write into; assign layer.weight = .. as a whole, or merge the model "
                "first."
            )
        made = dict[int, Tensor]()
        plain = [_plain(value, made) for value in (args, kwargs)]
        return _guarded(func(*plain[0], **plain[1]), made.values())

    def _answer(
        self, func: Any, name: str, what: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """What is answered without making the weight; `_WORK` where it has to be made."""
        if what != "__set__":
            if name in _ABOUT:
                with torch._C.DisableTorchFunctionSubclass():  # pyright: ignore[reportPrivateUsage]
                    return func(*args, **kwargs)
            if name in _PLACE:
                return getattr(self._like, name)
            if name == "is_leaf":
                return not self.requires_grad  # no optimizer can move it
            if name in ("data", "detach"):
                return _held(self.make().detach())
        if self._asks is not None and name.startswith("requires_grad"):
            self._asks(bool(args[1] if len(args) > 1 else kwargs.get("requires_grad", True)))
            return self
        if name in ("requires_grad_", "register_hook", "retain_grad"):
            raise SelectionError(
                f"{name} came for a weight that is made from terms when it is read; write it for "
                "the layer's parameters, or take a copy: nn.Parameter(layer.weight.clone())."
            )
        return _WORK

    @classmethod
    def __torch_dispatch__(
        cls,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        return cls.__torch_function__(func, types, args, kwargs)


def _named(func: Any) -> tuple[str, str]:
    """The name of a function, or of the attribute that it gets or sets; and which of them."""
    name = getattr(func, "__name__", str(func))
    if name in ("__get__", "__set__", "__delete__"):
        return getattr(func.__self__, "__name__", name), name
    return name, ""


def _writes(name: str, what: str, first: Any) -> bool:
    in_place = what in ("__set__", "__delete__") or name in _IN_PLACE
    in_place = in_place or (name.endswith("_") and not name.endswith("__"))
    return in_place and _holds(first)


def _holds(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return any(map(_holds, cast("list[Any]", value)))
    return isinstance(value, Made)


def _plain(value: Any, made: dict[int, Tensor]) -> Any:
    def make(part: Any) -> Any:
        if not isinstance(part, Made):
            return part
        if id(part) not in made:
            made[id(part)] = part.make()
        return made[id(part)]

    return pytree.tree_map(make, value)


def _guarded(found: Any, made: Iterable[Tensor]) -> Any:
    """What came out; what shares its numbers with a weight made is guarded as that is."""
    if isinstance(found, Tensor) and not isinstance(found, Made):
        for weight in made:
            if _shares(found, weight):
                return _held(found)
    return found


def _held(numbers: Tensor) -> Made:
    """What was made already, guarded in the same way."""
    held = cast(Any, numbers.as_subclass(Made))
    held.make, held._asks, held._like = (lambda: numbers), None, numbers
    return held


def _shares(one: Tensor, other: Tensor) -> bool:
    try:
        return one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr() != 0
    except (RuntimeError, NotImplementedError):
        return False  # a tensor of torch.func has no storage
