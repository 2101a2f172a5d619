"""What stands on its own: blocks in a row, or one layer, at the same place in two models."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import cast

from torch import Tensor, nn

from bondwise.errors import DataError
from bondwise.flow.chains.blocks import chains
from bondwise.flow.chains.calls import Call, first
from bondwise.layers.convolution import TensorConv
from bondwise.layers.hosts.registry import find, matrix_of
from bondwise.layers.linear import TensorLinear
from bondwise.layers.module import TensorLayer


@dataclass(frozen=True)
class Slice:
    """Blocks that run one after another and belong together, by their paths in both models.

    Attributes:
        names: of the blocks, in the order in which they run; of one layer where it stands alone.
        chain: which stack of blocks they are of; -1 for a layer that stands alone.
    """

    names: tuple[str, ...]
    chain: int = 0

    @property
    def name(self) -> str:
        """The first block, and the last one."""
        return self.names[0] if len(self.names) == 1 else f"{self.names[0]} to {self.names[-1]}"


def slices(student: nn.Module, teacher: nn.Module, size: int = 1) -> list[Slice]:
    """The slices of a student, in the order of its modules.

    Blocks without parameters, such as an activation, go with the block before them. A model that
    has no blocks is cut into single layers.

    Args:
        student: the compressed model.
        teacher: the dense one.
        size: blocks in a slice; 0 for single layers, all those whose weight is a network.

    Raises:
        DataError: they do not line up: a block is missing in one of the two or has other weights;
            there is nothing to cut; or the size is negative.

    >>> from bondwise import TensorLinear, lowrank
    >>> teacher = nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 8))
    >>> student = nn.Sequential(TensorLinear(lowrank(8, 8, 2)), nn.GELU(), nn.Linear(8, 8))
    >>> [part.name for part in slices(student, teacher)]
    ['0 to 1', '2']
    >>> [part.name for part in slices(student, teacher, size=0)]
    ['0']
    """
    if size < 0:
        raise DataError(f"Slices of {size} blocks came; write 1 or more, or 0 for single layers.")
    found = _of_blocks(student, teacher, size) if size else []
    found = found or _of_layers(student, teacher)
    if not found:
        what = "no blocks and no layers" if size else "no layers"
        raise DataError(
            f"{type(student).__name__} has {what} whose weights are networks; "
            "give a student that bondwise.tensorize made."
        )
    return found


def _of_layers(student: nn.Module, teacher: nn.Module) -> list[Slice]:
    """One slice for each layer whose weight is a network, but of embeddings."""
    found: list[Slice] = []
    for name, layer in student.named_modules():
        if isinstance(layer, TensorLinear | TensorConv):
            _check_block(student, teacher, name)
            found.append(Slice((name,), -1))
    return found


def _of_blocks(student: nn.Module, teacher: nn.Module, size: int) -> list[Slice]:
    found: list[Slice] = []
    for at, blocks in enumerate(_stacks(teacher)):
        _check_stack(student, teacher, blocks)
        for name in blocks:
            _check_block(student, teacher, name)
        found += [Slice(names, at) for names in _cut(student, blocks, size)]
    return found


def _stacks(model: nn.Module) -> list[tuple[str, ...]]:
    """Paths of the blocks of every outermost stack with two or more blocks that have weights."""
    owners = [name for name, m in model.named_modules() if name and _own(m)]
    return chains(model, owners)


def _own(module: nn.Module) -> bool:
    return next(iter(module.parameters(recurse=False)), None) is not None


def _cut(student: nn.Module, blocks: Sequence[str], size: int) -> Iterator[tuple[str, ...]]:
    """So many blocks with weights at a time; those without go with the ones before them."""
    part, weighty = list[str](), 0
    for name in blocks:
        has = next(student.get_submodule(name).parameters(), None) is not None
        if has and weighty == size:
            yield tuple(part)
            part, weighty = [], 0
        part.append(name)
        weighty += has
    yield tuple(part)


def _check_stack(student: nn.Module, teacher: nn.Module, blocks: Sequence[str]) -> None:
    parent = blocks[0].rpartition(".")[0]
    there = dict(student.named_modules()).get(parent)
    own = [f"{parent}.{name}".lstrip(".") for name, _ in there.named_children()] if there else []
    if own != list(blocks):
        here = f"{own[0]} to {own[-1]}" if own else f"no blocks at {parent or 'its top'}"
        raise DataError(
            f"The student ({type(student).__name__}) has {here}, the teacher "
            f"({type(teacher).__name__}) {blocks[0]} to {blocks[-1]}; "
            "give the dense model that the student was made from."
        )


def _check_block(student: nn.Module, teacher: nn.Module, name: str) -> None:
    """Refuse a block whose weights have other shapes in the two models."""
    theirs = dict(teacher.named_modules(remove_duplicate=False))
    for path, module in student.get_submodule(name).named_modules():
        full = f"{name}.{path}".rstrip(".")
        own, other = _shapes(module), _shapes(theirs[full]) if full in theirs else {}
        for key, shape in own.items():
            if other.get(key) != shape:
                there = f"has {other[key]}" if key in other else "has none"
                raise DataError(
                    f"{full}.{key} of the student has the shape {shape}, the teacher's {there}; "
                    "give the dense model that the student was made from."
                )


def _shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """Shapes of a module's own weights, a network's as that of the dense weight."""
    if isinstance(module, TensorLayer):
        bias = cast("Tensor | None", getattr(module, "bias", None))
        return {"weight": module.shape} | ({} if bias is None else {"bias": (len(bias),)})
    own = {k: tuple(p.shape) for k, p in module.named_parameters(recurse=False)}
    if "weight" in own and find(module) is not None:  # as a layer of terms has it
        own["weight"] = tuple(matrix_of(module).shape)
    return own


class Row(nn.Module):
    """Blocks of a model, one after another, as one module; each with its own other arguments."""

    def __init__(self, blocks: Iterable[nn.Module]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    @classmethod
    def of(cls, model: nn.Module, names: Iterable[str]) -> "Row":
        """The very blocks of a model."""
        return cls(model.get_submodule(name) for name in names)

    def forward(self, x: Tensor, *calls: Call) -> Tensor:
        """The state after the last block."""
        for block, (rest, named) in zip(self.blocks, calls, strict=True):
            x = first(block(x, *rest, **named))
        return x
