"""The numbers of `linear24` for few tokens, without a GPU: see `linear24_interpreted.py`."""

import pytest
from child import results_of
from linear24_interpreted import CASES

pytest.importorskip("triton", reason="triton is not installed")


@pytest.fixture(scope="module")
def results():
    return results_of("linear24_interpreted.py")


@pytest.mark.slow  # the first case waits for all of them
@pytest.mark.parametrize("case", CASES)
def test_as_close_as_the_dense_product(results, case):
    assert results[case] is None, results[case]
