"""The row rule: what is cut and put together, and what a prediction must hold."""

import numpy as np
import pytest

from tandem.errors import ModelError
from tandem.serving.rows import count_rows, get_batch_key, merge_rows, split_prediction, split_rows


@pytest.mark.parametrize("rows", [[1, 2, 3, 4, 5], np.arange(10).reshape(5, 2)])
def test_rows_are_cut_and_put_together_again(rows):
    parts = split_rows(rows, 2)
    assert [count_rows(part) for part in parts] == [2, 2, 1]
    np.testing.assert_array_equal(merge_rows(parts), rows)
    assert len({get_batch_key(part) for part in parts}) == 1


def test_rows_of_other_shapes_or_types_are_not_alike():
    rows = np.zeros((2, 3))
    assert get_batch_key(rows) == get_batch_key(rows[:1])
    assert len({get_batch_key(one) for one in (rows, rows[:, :2], rows.astype(int), [1], [2])}) == 4


def test_data_without_rows_is_never_cut():
    frame = {"a": 1}
    assert count_rows(frame) == 1
    assert split_rows(frame, 1) == [frame]
    assert get_batch_key(frame) != get_batch_key(frame)
    assert split_prediction("anything", [frame]) == ["anything"]


@pytest.mark.parametrize("prediction", [[1], [1, 2, 3], np.zeros(5), None, 7, {"a": 1}, np.float32(1)])
def test_a_prediction_must_hold_one_result_a_row(prediction):
    with pytest.raises(ModelError, match="for 2 rows; expected one result per row"):
        split_prediction(prediction, [[1], [2]])
