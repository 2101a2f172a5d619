"""A network as a notebook shows it: its picture, and the numbers below."""

from html import escape

from bondwise.draw.diagram import svg
from bondwise.network.network import Network


def html(net: Network, words: str = "") -> str:
    """The picture and a line below it; what Jupyter draws of a network, or of a layer that has one.

    >>> from bondwise import lowrank
    >>> html(lowrank(6, 4, 2))[-79:]
    '(i)</code><br><small>6 x 4 in 2 cores, 20 numbers</small></figcaption></figure>'
    """
    (out, inp), count = net.shape, len(net.cores)
    cores = f"{count} core{'s'[: count != 1]}"
    line = words or f"{out} x {inp} in {cores}, {net.parameters:,} numbers"
    caption = f"<code>{escape(str(net))}</code><br><small>{escape(line)}</small>"
    return f'<figure style="margin:0">{svg(net)}<figcaption>{caption}</figcaption></figure>'


# Pictures read networks, not the other way: a network learns here how a notebook shows it.
setattr(Network, "_repr_html_", html)  # noqa: B010
