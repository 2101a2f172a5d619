"""Numbers as a person reads them: k, M, MB, seconds."""

from collections.abc import Sequence
from math import isfinite

Number = int | float


def count(n: Number) -> str:
    """How many, to four digits at most.

    >>> count(576), count(331_776), count(106_168_320), count(7.2e9)
    ('576', '331.8 k', '106.2 M', '7.2 G')
    """
    return _scaled(n, ("", "k", "M", "G", "T"))


def size(n: Number) -> str:
    """Bytes in powers of a thousand, as disks are sold.

    >>> size(512), size(93_300_000), size(1_400_000_000)
    ('512 B', '93.3 MB', '1.4 GB')
    """
    return _scaled(n, ("B", "kB", "MB", "GB", "TB"))


def _scaled(n: Number, units: tuple[str, ...]) -> str:
    power = 0
    while abs(n) >= 999.95 and power < len(units) - 1:
        n, power = n / 1000, power + 1
    return f"{n:.1f} {units[power]}" if power else f"{n:.0f} {units[0]}".strip()


def duration(seconds: Number) -> str:
    """Time as a clock on the wall would tell it.

    >>> duration(0.84), duration(41), duration(191)
    ('0.8 s', '41.0 s', '3 min 11 s')
    """
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 100:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def instant(seconds: Number) -> str:
    """A time too short for `duration`.

    >>> instant(0.000013), instant(0.00084), instant(0.0841), instant(1.2345)
    ('13.0 us', '0.84 ms', '84.1 ms', '1.23 s')
    """
    if seconds < 1e-4:
        return f"{1e6 * seconds:.1f} us"
    if seconds >= 1:
        return f"{seconds:.2f} s"
    return f"{1000 * seconds:.{1 if seconds >= 0.01 else 2}f} ms"


def rate(value: Number) -> str:
    """So many in a second.

    >>> rate(41.27), rate(20061.2)
    ('41.3', '20,061')
    """
    return f"{value:,.{0 if value >= 1000 else 1}f}"


def decimal(value: Number | None, digits: int = 3) -> str:
    """A measured number; `-` where there is none, powers of ten where it has grown long.

    >>> decimal(0.0712), decimal(44.512, 2), decimal(20061.2, 1), decimal(None), decimal(8.1e9)
    ('0.071', '44.51', '20,061.2', '-', '8.1e+09')
    """
    if value is None:
        return "-"
    if not isfinite(value):
        return str(value)
    return f"{value:.3g}" if abs(value) >= 1e6 else f"{value:,.{digits}f}"


def percent(value: Number | None) -> str:
    """A fraction as a percentage.

    >>> percent(0.7123), percent(None)
    ('71.2 %', '-')
    """
    return "-" if value is None else f"{value:.1%}".replace("%", " %")


def span(values: Sequence[Number], digits: int = 0) -> str:
    """Smallest and largest, once if they are the same.

    >>> span([96, 312, 104]), span([8, 8]), span([0.12, 0.3], 2), span([])
    ('96..312', '8', '0.12..0.30', '-')
    """
    if not values:
        return "-"
    low, high = (f"{value:.{digits}f}" for value in (min(values), max(values)))
    return low if low == high else f"{low}..{high}"
