"""The benchmark of metrics: the sides agree on small masks, and disagreement stops it."""

import warnings

import pytest

from benchmarks import metrics
from medseg.core.labelmap import present_values


def test_all_sides_agree_and_are_timed():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        masks = metrics.two_masks((16, 20, 18))
        table = metrics.agreement(masks, 1)
        seconds = metrics.twenty_labels(1, (16, 20, 18))
        prediction, _ = metrics.label_maps((16, 20, 18))
    assert present_values(prediction.data_ijk) == list(range(21))
    assert [row[0] for row in table] == ["surface-distance", "MONAI", "medpy (HD95)"]
    rows = metrics.rows_of("20 labels", seconds)
    assert rows[0].ratio == 1.0
    assert all(row.seconds > 0 for row in rows)


def test_a_side_that_disagrees_stops_it():
    with pytest.raises(ArithmeticError, match="MONAI disagrees"):
        metrics.check("MONAI", (1.0, 0.5), (1.0, 0.6), 1e-4)
