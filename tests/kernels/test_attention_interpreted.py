"""The attention kernels' numbers, without a GPU: see `attention_interpreted.py`, run once for all cases."""

import pytest
from attention_interpreted import CASES
from child import results_of

pytest.importorskip("triton", reason="triton is not installed")


@pytest.fixture(scope="module")
def results():
    return results_of("attention_interpreted.py")


@pytest.mark.slow  # the first case waits for all of them
@pytest.mark.parametrize("case", CASES)
def test_equal_to_the_formula(results, case):
    assert results[case] is None, results[case]
