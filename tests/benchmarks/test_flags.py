"""What the benchmarks are asked on the command line, and what they say to what they cannot take."""

import argparse

import pytest
from comparison.flags import above_zero, several, some


def test_what_is_given_with_commas_is_read_in_its_order():
    assert several(float)("0.8,0.5") == [0.8, 0.5]
    assert several(int, 2)("3,2") == [3, 2]
    assert some(["local", "both"])("both,local") == ["both", "local"]
    assert above_zero("0.25") == 0.25


@pytest.mark.parametrize(
    ("read", "text", "said"),
    [
        (several(int, 2), "3,1", "write 2 or more"),
        (several(float), "-1", "write 0 or more"),
        (some(["local", "both"]), "local,all", "'all' is none of local, both"),
        (above_zero, "0", "write a number above 0"),
        (above_zero, "-3", "write a number above 0"),
        (above_zero, "inf", "write a number above 0"),
        (above_zero, "nan", "write a number above 0"),
    ],
)
def test_what_cannot_be_taken_is_answered_with_what_to_write(read, text, said):
    with pytest.raises(argparse.ArgumentTypeError, match=said):
        read(text)
