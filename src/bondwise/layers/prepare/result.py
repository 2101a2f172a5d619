"""What `prepare` chose, and what it gained."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

WIDTH = 80


@dataclass(frozen=True)
class Choice:
    """How one layer runs for one kind of call.

    Attributes:
        name: its path.
        host: of its kind.
        shape: (out, in) of the weight.
        rows: of the input: tokens, samples of a convolution, or ids.
        input: shape of the input that it was measured with.
        dtype: of the layer.
        way: what was chosen.
        built: seconds as built.
        dense: seconds of the dense layer in torch.
        seconds: as prepared.
        share: of the ideal, which is dense's seconds times the share of its multiplications that
            the network needs.
        bytes: that the way takes beside the parameters.
        joined: paths of the layers that are run as one product with it, this one among them.
    """

    name: str
    host: str
    shape: tuple[int, int]
    rows: int
    input: tuple[int, ...]
    dtype: str
    way: str
    built: float
    dense: float
    seconds: float
    share: float
    bytes: int
    joined: tuple[str, ...] = ()


@dataclass(frozen=True)
class Group:
    """Layers of one shape, for one kind of call; seconds are sums over them.

    Attributes:
        shape: (out, in) of the weights.
        rows: of the input.
        layers: how many they are.
        dense: seconds of the dense layers in torch.
        built: seconds as built.
        seconds: as prepared.
        share: of the ideal (see `Choice`), their mean by seconds.
        way: that most of them run by.
        others: how many other ways some of them run by.
    """

    shape: tuple[int, int]
    rows: int
    layers: int
    dense: float
    built: float
    seconds: float
    share: float
    way: str
    others: int


@dataclass(frozen=True)
class Prepared:
    """What `bondwise.prepare` returns: a line for each layer and kind of call.

    Attributes:
        choices: in the order of the model.
        skipped: layers that run as built, with the reason.
        seconds: that preparing took.
        bytes: that all layers take beside their parameters.
    """

    choices: tuple[Choice, ...]
    skipped: dict[str, str]
    seconds: float
    bytes: int

    def __len__(self) -> int:
        return len(self.choices)

    def __iter__(self) -> Iterator[Choice]:
        return iter(self.choices)

    def groups(self) -> list[Group]:
        """Layers of one shape and kind of call together, in the order of the model."""
        found: dict[tuple[Any, ...], list[Choice]] = {}
        for own in self.choices:
            found.setdefault((own.shape, own.input), []).append(own)
        return [*map(_group, found.values())]

    def as_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return asdict(self)

    def __str__(self) -> str:
        """A line for each shape and number of rows, in 80 columns; seconds are sums."""
        layers = len({c.name for c in self.choices})
        lines = [
            (
                f"{layers} layer{'s' * (layers != 1)} prepared in {self.seconds:.1f} s, "
                f"{_size(self.bytes)} beside their parameters"
            )
        ]
        if self.choices:
            lines.append("")
            lines.append(
                f"{'weight':<14}{'layers':>6} {'rows':>5} {'dense':>9} {'built':>9} "
                f"{'prepared':>9} {'ideal':>6}  way"
            )
            lines += map(_line, self.groups())
        if self.skipped:
            name, reason = next(iter(self.skipped.items()))
            count = f"{len(self.skipped)} layer{'s' * (len(self.skipped) > 1)}"
            lines.append(f"as built: {count}, such as {name} ({reason})")
        return "\n".join(lines)


def _group(choices: Sequence[Choice]) -> Group:
    dense, built, ours = (
        sum(getattr(c, name) for c in choices) for name in ("dense", "built", "seconds")
    )
    ways = [c.way for c in choices]
    return Group(
        choices[0].shape,
        choices[0].rows,
        len(choices),
        dense,
        built,
        ours,
        sum(c.share * c.seconds for c in choices) / ours,
        max(dict.fromkeys(ways), key=ways.count),
        len(set(ways)) - 1,
    )


def _line(group: Group) -> str:
    out, inp = group.shape
    dense = _time(group.dense) if group.dense else "-"  # no kernel for it
    share = f"{100 * group.share:.0f}%" if group.dense else "-"
    start = (
        f"{f'{out} x {inp}':<14}{group.layers:>6} {group.rows:>5} {dense:>9} "
        f"{_time(group.built):>9} {_time(group.seconds):>9} {share:>6}  "
    )
    more = f" +{group.others}" if group.others else ""
    room = WIDTH - len(start) - len(more)
    way = group.way if len(group.way) <= room else f"{group.way[: room - 2]}.."
    return f"{start}{way}{more}"


def _size(count: int) -> str:
    return f"{count / 1e6:,.1f} MB" if count >= 1e6 or not count else f"{count / 1e3:,.1f} kB"


def _time(seconds: float) -> str:
    return f"{1e6 * seconds:,.0f} us" if seconds < 0.1 else f"{1e3 * seconds:,.0f} ms"
