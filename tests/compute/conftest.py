"""What a test of any network is given: every kind of network."""

from nets import networks


def pytest_generate_tests(metafunc):
    if "net" in metafunc.fixturenames:
        metafunc.parametrize("net", networks(), ids=lambda net: f"{net}, {net.parameters}")
