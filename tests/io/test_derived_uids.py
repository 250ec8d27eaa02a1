"""The same result has the same identifiers; another one has others."""

import re

import numpy as np
import pydicom

from medseg.core import Grid, LabelMap, LabelScheme
from medseg.io.derived_uids import derived_uid
from medseg.io.dicom_seg import Algorithm, write_seg
from medseg.io.reading import read_image
from tests.series import AXIAL, small_series

TIMES = re.compile(r"(Creation|Content|Series)(Date|Time)$")


def test_parts_cannot_be_shifted_into_each_other():
    found = [("a", ["b", "c"]), ("a", ["bc"]), ("ab", ["c"]), ("a", ["b\n1 c"]), ("b", ["b", "c"])]
    uids = {derived_uid(kind, parts) for kind, parts in found}
    assert len(uids) == len(found)
    assert all(re.fullmatch(r"2\.25\.[1-9]\d{30,38}", uid) for uid in uids)
    assert derived_uid("a", ["b"]) == derived_uid("a", ["b"])


def segmented(tmp_path, name, source, value=1, algorithm="net"):
    data = np.zeros(source.volume.grid.shape_ijk, np.uint8)
    data[2:4, 2:4, 1:3] = value
    labels = LabelMap(data, source.volume.grid, LabelScheme.plain("s", {1: "a", 2: "b"}))
    path = tmp_path / name
    write_seg(labels, path, source.source, algorithm=Algorithm(algorithm, "1"))
    return pydicom.dcmread(path)


def plain(dataset):
    """All elements but the moments of making."""
    content = dataset.to_json_dict()
    times = {key for key in content if TIMES.search(pydicom.datadict.keyword_for_tag(key))}
    for equipment in content["0018A001"]["Value"]:  # what highdicom says of itself
        del equipment["0018A002"]
    meta = dataset.file_meta.to_json_dict()
    return {key: value for key, value in content.items() if key not in times}, meta


def test_a_segmentation_made_again_differs_in_dates_and_times_alone(tmp_path):
    grid = Grid((8, 8, 4), AXIAL.affine_ras)
    source = read_image(small_series(tmp_path / "series", grid))
    first = segmented(tmp_path, "a.dcm", source)
    again = segmented(tmp_path, "b.dcm", source)
    assert plain(first) == plain(again)
    other = segmented(tmp_path, "c.dcm", source, value=2)
    another = segmented(tmp_path, "d.dcm", source, algorithm="other")
    uids = {seg.SOPInstanceUID for seg in (first, other, another)}
    series = {seg.SeriesInstanceUID for seg in (first, other, another)}
    assert len(uids) == len(series) == 3
    assert not uids & series
