"""The pictures of docs/topologies.md and docs/stack.md, drawn from the networks themselves.

`python docs/make_pictures.py` writes them again to docs/pictures.
"""

import re
from pathlib import Path

import bondwise as bw
from bondwise.draw.diagram import svg
from bondwise.draw.stack_diagram import stack_svg

FOLDER = Path(__file__).parent / "pictures"

# Every weight is 64 x 64, so that the pictures compare.
NETWORKS = {
    "lowrank": bw.lowrank(64, 64, 16),
    "mpo": bw.mpo((4, 4, 4), (4, 4, 4), 12),
    "ring": bw.ring((4, 4, 4), (4, 4, 4), 6),
    "tucker": bw.tucker((8, 8), (8, 8), 6),
    "cp": bw.cp((8, 8), (8, 8), 32),
    "kron": bw.kron((8, 8), (8, 8), 4),
    "btt": bw.btt((16, 4), (4, 16), 4),
    "tree": bw.tree((2, 2, 4, 4), (2, 2, 4, 4), 4),
    "blocks": bw.parse("b o a, b a i -> (b o) (b i)", b=4, o=16, a=8, i=16),
    "hyperedge": bw.parse("o1 i1 s, o2 i2 s, o3 i3 s -> (o1 o2 o3) (i1 i2 i3)",
                          o1=4, i1=4, o2=4, i2=4, o3=4, i3=4, s=8),
    "uneven": bw.mpo((8, 8), (4, 4, 4), (8, 4)),
    "bond-1": bw.mpo((8, 8), (8, 8), 1),
    "bond-4": bw.mpo((8, 8), (8, 8), 4),
    "bond-64": bw.mpo((8, 8), (8, 8), 64),
}  # fmt: skip

# Of which network, in which order of its cores.
STACKS = {
    "stack-up": ("mpo", (0, 1, 2)),
    "stack-middle-first": ("mpo", (1, 0, 2)),
    "stack-ring": ("ring", (0, 1, 2)),
    "stack-tucker": ("tucker", (2, 4, 0, 1, 3)),
    "stack-cp": ("cp", (1, 3, 0, 2)),
}

# An <img> takes no colours from its page, so the picture brings a panel that is legible on any.
STYLE = (
    "<style>svg{color:#1f2328;--panel:#fff}"
    "@media(prefers-color-scheme:dark){svg{color:#e6edf3;--panel:#161b22}}</style>"
)


def standalone(picture: str) -> str:
    """The SVG with its own colours and a panel behind it."""
    found = re.search(r'viewBox="(\S+) (\S+) (\S+) (\S+)"', picture)
    assert found is not None, "every picture of bondwise has a view box"
    x, y, width, height = found.groups()
    panel = (
        f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="8" '
        'style="fill:var(--panel,#fff)"/>'
    )
    return picture.replace("</title>", f"</title>{STYLE}{panel}", 1) + "\n"


def pictures() -> dict[str, str]:
    """The text of every picture, by file name."""
    drawn = {name: svg(net) for name, net in NETWORKS.items()}
    drawn |= {name: stack_svg(NETWORKS[net], order) for name, (net, order) in STACKS.items()}
    return {f"{name}.svg": standalone(picture) for name, picture in drawn.items()}


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, picture in pictures().items():
        (FOLDER / name).write_text(picture, encoding="utf-8")
