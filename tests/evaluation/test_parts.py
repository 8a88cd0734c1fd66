"""Parts of data and windows over sequences."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from svd_hybrid.errors import ParameterError
from svd_hybrid.evaluation.split import Part
from svd_hybrid.evaluation.windows import windows


@given(count=st.integers(2, 200), share=st.floats(0.3, 0.7), seed=st.integers(0, 9))
def test_validation_and_test_share_nothing_and_leave_nothing_out(count, share, seed):
    chosen = Part("validation", share, seed).rows("cars", count)
    rest = Part("test", share, seed).rows("cars", count)
    assert sorted(chosen + rest) == list(range(count))
    assert len(chosen) == round(count * share)


def test_the_draw_depends_on_task_and_seed_alone():
    part = Part("validation")
    assert part.rows("cars", 50) == part.rows("cars", 50)
    assert part.rows("cars", 50) != part.rows("dtd", 50)
    assert part.rows("cars", 50) != Part("validation", seed=1).rows("cars", 50)
    assert Part().rows("cars", 3) == [0, 1, 2]


def test_an_empty_part_is_an_error():
    with pytest.raises(ParameterError, match="validation part of task 'cars' is empty"):
        Part("validation").rows("cars", 1)
    with pytest.raises(ParameterError, match="validation share is 1"):
        Part("validation", 1.0)


@given(length=st.integers(0, 120), size=st.integers(1, 40), data=st.data())
def test_windows_predict_every_token_once_with_all_the_context_that_fits(length, size, data):
    stride = data.draw(st.integers(1, size))
    predicted: list[int] = []
    for window in windows(length, size, stride):
        assert 1 <= window.stop - window.start <= size
        assert window.new <= window.stop - window.start
        assert window.start == max(0, window.stop - size)
        predicted += range(window.stop - window.new + 1, window.stop + 1)
    assert predicted == list(range(1, length))
