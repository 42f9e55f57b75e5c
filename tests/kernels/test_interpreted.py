"""The Triton kernels' numbers, without a GPU: see `interpreted.py`, run once for all its cases."""

import pytest
from child import results_of
from interpreted import CASES

pytest.importorskip("triton", reason="triton is not installed")


@pytest.fixture(scope="module")
def results():
    return results_of("interpreted.py")


@pytest.mark.slow  # the first case waits for all of them
@pytest.mark.parametrize("case", CASES)
def test_equal_to_the_definition(results, case):
    assert results[case] is None, results[case]
