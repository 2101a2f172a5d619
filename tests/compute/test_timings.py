"""Timings are there, for every order; how long they are is the machine's affair."""

import pytest
import torch

import bondwise as bw
from bondwise.compute.orders import orders
from bondwise.compute.timings import time_orders
from bondwise.errors import PlanError, ShapeError


def test_every_order_takes_time(net, make_cores):
    found = orders(net, limit=6)
    times = time_orders(net, make_cores(net), batch=3, among=found, repeats=2)
    assert [timing.order for timing in times] == list(found)
    assert all(timing.forward > 0 and timing.backward > 0 for timing in times)


def test_all_orders_unless_told_and_the_cores_as_they_were(make_cores):
    net = bw.mpo((2, 2, 2), (3, 3, 3), 2)
    cores = [core.float() for core in make_cores(net)]
    copies = [core.clone() for core in cores]
    assert len(time_orders(net, cores, repeats=1)) == 4
    assert all(torch.equal(*pair) for pair in zip(cores, copies, strict=True))
    assert not any(core.requires_grad for core in cores)


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"batch": 0}, PlanError, "Batch 0 came"),
        ({"repeats": 0}, PlanError, "Repeats 0 came"),
        ({"batch": True}, PlanError, "Batch True came"),
        ({"cores": [torch.ones(6, 2)]}, ShapeError, "1 cores came"),
        ({"cores": [torch.ones(6, 2), torch.ones(3, 4)]}, ShapeError, r"\(3, 4\)"),
    ],
)
def test_what_cannot_be_timed_is_refused(options, error, says):
    with pytest.raises(error, match=says):
        time_orders(
            bw.lowrank(6, 4, 2), **{"cores": [torch.ones(6, 2), torch.ones(2, 4)]} | options
        )
