"""What a notebook draws: the picture of the network, whole and well-formed."""

from xml.etree import ElementTree

import pytest

import bondwise as bw
from bondwise.draw.diagram import svg

NETS = [bw.lowrank(6, 4, 2), bw.mpo((2, 3), (3, 2), 3), bw.parse("o i -> (o) (i)", o=2, i=3)]


def words(html):
    return " ".join(
        "".join(ElementTree.fromstring(html.replace("<br>", "<br/>")).itertext()).split()
    )


@pytest.mark.parametrize("net", NETS, ids=str)
def test_a_network_draws_itself(net):
    html = net._repr_html_()
    assert svg(net) in html
    assert f"{net.parameters} numbers" in words(html)


def test_a_layer_draws_its_network_and_says_what_is_stored():
    layer = bw.TensorLinear(bw.lowrank(6, 4, 2))
    html = layer._repr_html_()
    assert svg(layer.network) in html
    assert words(html).endswith("TensorLinear, 6 x 4, 20 numbers stored")
    assert "TensorEmbedding" in bw.TensorEmbedding(bw.lowrank(6, 4, 2))._repr_html_()
