"""The Hopper kernel's activations, compiled for the host, against float64."""

import numpy as np
import pytest
from build_tools import compile_program, run
from scipy.special import ndtr

PROGRAM = """
#include <cstdio>
#include "cuda/linear24_activation.cuh"
int main(int, char** arguments) {
    const vlprune::Gate gate = vlprune::gate_of(static_cast<vlprune::Activation>(arguments[1][0] - '0'));
    float x;
    while (std::fread(&x, 4, 1, stdin) == 1) {
        const float y = vlprune::gated(x, gate);
        std::fwrite(&y, 4, 1, stdout);
    }
}
"""


@pytest.fixture(scope="module")
def activated(tmp_path_factory):
    program = compile_program(tmp_path_factory.mktemp("activation"), PROGRAM)

    def activate(code, x):
        return np.frombuffer(run([program, str(code)], input=x.tobytes()).stdout, np.float32)

    return activate


@pytest.fixture(scope="module")
def x():
    spread = np.random.default_rng(0).standard_normal(100_000) * 4
    return np.concatenate([np.linspace(-12, 12, 200_001), spread, [-200, -40, 40, 200, 0.0, -0.0]]).astype(
        np.float32
    )


def test_gelu_is_the_one_with_erf(activated, x):
    error = np.abs(activated(1, x) - x.astype(np.float64) * ndtr(x.astype(np.float64)))
    # The bounds that the source states: the fit's error, and for positive x float32's rounding of the result.
    relative = error / np.maximum(1, np.abs(x))
    assert error[x < 0].max() < 1.1e-7
    assert error[np.abs(x) < 6].max() < 6e-7
    # Three roundings at most: of the sigmoid, of its inverse, of the product.
    assert relative.max() < 3 * 2**-23


def test_quick_gelu(activated, x):
    double = x.astype(np.float64)
    with np.errstate(over="ignore"):
        expected = double / (1 + np.exp(-1.702 * double))
    # The exponent's rounding is relative to 2.46 |x|, so the sigmoid's error grows with |x|; by 12 it is 3e-6
    # of a value that is itself small there.
    np.testing.assert_allclose(activated(2, x), expected, rtol=3e-6, atol=1e-7)


def test_not_finite(activated):
    special = np.array([np.inf, np.nan], np.float32)
    for code in (1, 2):
        assert activated(code, special).tolist()[0] == np.inf
        assert np.isnan(activated(code, special)[1])
