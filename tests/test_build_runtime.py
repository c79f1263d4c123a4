"""What the wheelhouse's builder says of the wheels in it."""

from __future__ import annotations

import pytest

from tests.support.scripts import load_tool

WHEELS = {
    "anyio-4.16.0-py3-none-any.whl": (0, 0),
    "pyparsing-3.3.3-py2.py3-none-any.whl": (0, 0),
    "llguidance-1.9.1-cp39-abi3-manylinux_2_31_x86_64.whl": (2, 31),
    "hf_xet-1.8.0-cp38-abi3-manylinux2014_x86_64.manylinux_2_17_x86_64.whl": (2, 17),
    "charset_normalizer-3.5.3-cp311-cp311-manylinux1_x86_64.manylinux_2_28_x86_64.manylinux_2_5_x86_64.whl": (2, 5),
    "psutil-7.2.2-cp36-abi3-manylinux2010_x86_64.whl": (2, 12),
    "numpy-2.4.6-cp311-cp311-macosx_14_0_arm64.whl": (0, 0),
}


@pytest.mark.parametrize("wheel", WHEELS)
def test_the_oldest_glibc_that_a_wheel_runs_on(wheel: str) -> None:
    assert load_tool("build_runtime").oldest_glibc(wheel) == WHEELS[wheel]
