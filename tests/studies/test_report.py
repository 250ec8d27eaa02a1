"""The report holds what it was given, loads nothing and says what it is."""

import base64
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from medseg import NOTICE
from medseg.core import Grid, Label, LabelMap, LabelScheme, Volume
from medseg.core.uncertainty import DoubtfulSlice, UncertaintySummary, summarise_uncertainty
from medseg.errors import GeometryError, ShapeError
from medseg.io.nifti import read_nifti, read_nifti_labels
from medseg.studies.report import case_report_html

VOID = {"meta", "img", "br"}
SCHEME = LabelScheme(
    "test",
    (
        Label(1, "liver", (250, 10, 10)),
        Label(2, "spleen", (10, 10, 250)),
        Label(5, "none", (0, 0, 0)),
    ),
)
STATISTICS = [
    {"name": "liver", "value": 1, "voxels": 4000, "volume_ml": 4.0, "surface_mm2": 1234.567,
     "centroid_ras_mm": [1.25, -2.5, 3.0], "touches_border": False, "mean_CT": 50.123456},
    {"name": "spleen", "value": 2, "voxels": 1000, "volume_ml": 1.0, "surface_mm2": None,
     "centroid_ras_mm": [0.0, 0.0, 0.0], "touches_border": True, "mean_CT": 48.0},
    {"name": "none", "value": 5, "voxels": 0, "volume_ml": 0.0, "surface_mm2": None,
     "centroid_ras_mm": None, "touches_border": False, "mean_CT": None},
]  # fmt: skip
MANIFEST = {
    "model": {
        "name": "tiny",
        "version": "1.2",
        "licence": "CC0-1.0",
        "weights_sha256": "ab" * 32,
    },
    "device": "cuda:0",
    "precision": "bf16",
    "settings": {"overlap": 0.5, "mirror": ["i", "j"], "nested": {"max_vram_bytes": 3 * 2**30}},
    "seconds": {"read": 0.25, "windows": 12.5},
    "memory": {"predicted": {"peak_bytes": 900 * 2**20}, "measured": {"peak_bytes": 850 * 2**20}},
    "warnings": ["the image was padded"],
    "step_downs": [{"stage": "windows", "from": "batch 4", "to": "batch 2"}],
}


class Page(HTMLParser):
    """The elements of a page; fails where they are not nested properly."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.open, self.text = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"style", "script"} & set(self.open):
            self.text.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def words(self):
        return re.sub(r"\s+", " ", " ".join(self.text))


def scene(shape=(30, 28, 26)):
    data = np.zeros(shape, dtype=np.uint8)
    data[4:14, 4:24, 3:23] = 1
    data[18:28, 8:18, 5:15] = 2
    grid = Grid(shape, np.diag([1.0, 1.0, 1.0, 1.0]))
    image = np.random.default_rng(0).integers(-100, 200, size=(1, *shape)).astype(np.int16)
    return Volume(image, grid), LabelMap(data, grid, SCHEME)


def report(uncertainty=None, **changes):
    volume, labels = scene()
    values = {"case": "case 7", "statistics": STATISTICS, "manifest": MANIFEST, **changes}
    return case_report_html(volume, labels, uncertainty=uncertainty, **values)


def doubts(labels):
    entropy = np.zeros(labels.data_ijk.shape, dtype=np.uint8)
    entropy[8:12, 8:18, 18] = 230
    entropy[20:24, 10:14, 7] = 250
    return summarise_uncertainty(entropy, labels)


def pictures(page):
    for attributes in page.all("img"):
        head, _, data = attributes["src"].partition(",")
        assert head in ("data:image/png;base64", "data:image/jpeg;base64")
        yield Image.open(io.BytesIO(base64.b64decode(data, validate=True)))


def test_nothing_outside_the_page_is_referred_to():
    text = report(doubts(scene()[1]))
    page = Page(text)
    for tag, attributes in page.elements:
        assert tag not in ("link", "iframe", "object", "embed", "base", "form", "a")
        assert not {"href", "srcset", "action", "onload", "onclick"} & set(attributes)
        assert attributes.get("src", "data:image/").startswith("data:image/")
    assert "http" not in text.replace("http-equiv", "")
    assert "url(" not in text
    assert "@import" not in text
    policy = next(meta["content"] for meta in page.all("meta") if "http-equiv" in meta)
    assert policy.startswith("default-src 'none'")
    for picture in pictures(page):
        picture.load()


def test_it_says_what_it_is_and_which_model_ran():
    words = Page(report()).words
    assert words.count(NOTICE) >= 2
    for expected in ("case 7", "tiny", "1.2", "CC0-1.0", "ab" * 32, "liver, spleen, none"):
        assert expected in words


def test_the_run_is_told_with_every_setting():
    words = Page(report()).words
    for expected in (
        "device cuda:0",
        "precision bf16",
        "overlap 0.5",
        "mirror i, j",
        "nested max vram 3072.0 MiB",
        "windows 12.5",
        "total 12.75",
        "predicted peak 900.0 MiB",
        "measured peak 850.0 MiB",
        "the image was padded",
        "stage windows, from batch 4, to batch 2",
    ):
        assert expected in words, expected


def test_an_empty_list_of_warnings_is_said_to_be_empty():
    words = Page(report(manifest={"warnings": [], "seconds": {}})).words
    assert "Warnings None." in words
    assert "Seconds per stage None." in words


def test_statistics_stand_in_their_order_with_units_and_dashes():
    page = Page(report())
    words = page.words
    assert "name value voxels volume (ml)" in words
    assert "surface (mm²) centroid ras (mm) touches border mean CT" in words
    assert "liver 1 4000 4.000" in words
    assert "liver 1235 1.25, -2.5, 3 no 50.12" in words
    assert "spleen - 0, 0, 0 yes 48.00" in words
    assert "Not a voxel of: none." in words


def test_bars_are_as_long_as_volumes_and_in_the_label_s_colour():
    text = report()
    assert "width:100.0%;background:#fa0a0a" in text
    assert "width:25.0%;background:#0a0afa" in text  # 1000 of 4000 voxels


def test_every_table_has_headers_and_every_picture_a_description():
    page = Page(report(doubts(scene()[1])))
    assert page.all("html") == [{"lang": "en"}]
    for attributes in page.all("img"):
        assert len(attributes["alt"]) > 20
    for attributes in page.all("th"):
        assert attributes["scope"] in ("col", "row")
    assert len(page.all("table")) == len(page.all("caption")) + len(
        [table for table in page.all("table") if "aria-label" in table]
    )


def test_whatever_is_handed_in_is_escaped():
    evil = '"><script>alert(1)</script><b>&'
    volume, labels = scene()
    scheme = LabelScheme(evil, (Label(1, evil, (1, 2, 3)), Label(2, "'b'", (4, 5, 6))))
    summary = doubts(labels)
    slices = tuple(
        DoubtfulSlice(each.axis_name, each.index, each.position_mm, each.mean_entropy, evil)
        for each in summary.slices
    )
    text = case_report_html(
        volume,
        LabelMap(labels.data_ijk, labels.grid, scheme),
        case=evil,
        statistics=[{"name": evil, evil: evil, "voxels": 0}, {"name": evil, evil: [evil]}],
        manifest={
            "model": {evil: evil, "name": evil},
            evil: {evil: evil},
            "settings": {evil: [evil, {evil: evil}]},
            "warnings": [evil],
            "seconds": {evil: evil},
            "step_downs": evil,
        },
        uncertainty=UncertaintySummary({evil: 0.5}, slices, summary.entropy_ijk),
    )
    page = Page(text)
    assert len(page.all("script")) == 1
    assert page.all("b") == []
    assert page.words.count(evil) >= 12


def test_only_what_was_handed_in_is_told():
    text = report(manifest={}, statistics=[])
    words = Page(text).words
    assert "Uncertainty" not in words
    assert "Run" not in words
    assert "Structures" not in words
    bare = case_report_html(*scene(), case="x", statistics=[], manifest={"model": "unet"})
    assert "name unet" in Page(bare).words


def test_what_the_page_shows_already_is_not_told_twice():
    manifest = {"case": "xone", "notice": "xtwo", "statistics": [1], "volumes_ml": {"xthree": 1}}
    words = Page(report(manifest=manifest)).words
    for told in ("xone", "xtwo", "xthree"):
        assert told not in words


def test_doubtful_slices_come_in_order_each_with_its_picture():
    _, labels = scene()
    summary = doubts(labels)
    without, page = Page(report()), Page(report(summary))
    words = page.words
    # 40 voxels of 230 outweigh 16 of 250
    assert [each.label for each in summary.slices] == ["liver", "spleen"]
    assert words.index("axial, k = 18 of 26 (S +18.0 mm)") < words.index("axial, k = 7 of 26")
    assert f"mean entropy {summary.slices[0].mean_entropy:.3f}" in words
    assert f"liver {summary.per_label['liver']:.4g}"[:10] in words
    assert len(page.all("img")) == len(without.all("img")) + 2
    # heat is warm; the image is grey and outlines are white
    warm = [np.asarray(each.convert("RGB")).astype(int) for each in pictures(page)][1:3]
    for pixels in warm:
        assert (pixels[..., 0] - pixels[..., 2] > 60).sum() > 50


def test_a_summary_without_entropy_or_slices_is_told_as_such():
    _, labels = scene()
    summary = doubts(labels)
    plain = Page(report(UncertaintySummary(summary.per_label, summary.slices)))
    assert "drawn over the image" not in plain.words
    assert len(plain.all("img")) == len(Page(report()).all("img")) + 2
    assert "No slice is in doubt." in Page(report(UncertaintySummary({}, ()))).words


def test_an_empty_segmentation_has_a_report_too():
    volume, labels = scene()
    empty = LabelMap(np.zeros_like(labels.data_ijk), labels.grid, SCHEME)
    statistics = [{"name": "liver", "value": 1, "voxels": 0, "volume_ml": 0.0}]
    uncertainty = summarise_uncertainty(np.full(labels.data_ijk.shape, 9, np.uint8), empty)
    text = case_report_html(
        volume, empty, case="x", statistics=statistics, manifest={}, uncertainty=uncertainty
    )
    words = Page(text).words
    assert "Nothing was segmented." in words
    assert "Not a voxel of: liver." in words
    assert "background, mean entropy 0.035" in words


def test_many_structures_stay_within_bounds_and_the_page_says_what_is_left_out():
    shape = (120, 60, 60)
    data = np.zeros(shape, dtype=np.uint8)
    for value in range(1, 118):
        data[value, 10:50, 10 : 50 - value // 4] = value
    grid = Grid(shape, np.eye(4))
    scheme = LabelScheme.plain("many", {value: f"part {value}" for value in range(1, 118)})
    image = np.random.default_rng(0).integers(0, 4000, size=(1, *shape)).astype(np.int16)
    labels = LabelMap(data, grid, scheme)
    statistics = [{"name": each.name, "value": each.value} for each in scheme.labels]
    text = case_report_html(
        Volume(image, grid), labels, case="x", statistics=statistics, manifest={}
    )
    page = Page(text)
    drawn = len(page.all("img")) - 1
    assert 0 < drawn <= 60
    assert f"Smaller structures left out to keep the page small: {117 - drawn}." in page.words
    assert len(text) < 8.5 * 2**20


def test_a_long_list_of_doubtful_slices_keeps_all_lines_but_not_all_pictures():
    slices = tuple(DoubtfulSlice("k", index, float(index), 0.1, "liver") for index in range(20))
    page = Page(report(UncertaintySummary({}, slices)))
    assert page.words.count("mean entropy 0.100") == 20
    assert len(page.all("img")) == len(Page(report()).all("img")) + 12


def test_pictures_that_are_too_large_together_are_left_out(monkeypatch):
    sources = [attributes["src"] for attributes in Page(report()).all("img")]
    sizes = [len(base64.b64decode(source.partition(",")[2])) for source in sources]
    assert len(sizes) == 3
    monkeypatch.setattr("medseg.studies.report._PICTURE_BYTES", sum(sizes) - 1)
    page = Page(report())
    assert [attributes["src"] for attributes in page.all("img")] == sources[:2]
    assert "Smaller structures left out to keep the page small: 1." in page.words


def test_images_that_do_not_fit_are_refused():
    volume, labels = scene()
    other = LabelMap(np.zeros((5, 5, 5), np.uint8), Grid((5, 5, 5), np.eye(4)), SCHEME)
    with pytest.raises(GeometryError, match="labels on the image's grid"):
        case_report_html(volume, other, case="x", statistics=[], manifest={})
    found = doubts(labels).slices
    with pytest.raises(ShapeError, match="bring the entropy to the image's grid first"):
        report(UncertaintySummary({}, found, np.zeros((3, 3, 3), np.uint8)))


@pytest.mark.shared_data
def test_a_real_ct_with_41_structures_is_reported(shared_data):
    folder = shared_data / "04_totalsegmentator_ct_mr"
    names = json.loads((folder / "class_map.json").read_text())
    classes = next(each for each in names.values() if len(each) == 117)
    scheme = LabelScheme.plain("total", {int(value): name for value, name in classes.items()})
    volume = read_nifti(folder / "nifti" / "example_ct_sm.nii.gz").volume
    labels = read_nifti_labels(folder / "nifti" / "example_seg.nii.gz", scheme)
    page = Page(case_report_html(volume, labels, case="ct", statistics=[], manifest={}))
    assert len(page.all("img")) == 1 + 41
    assert {picture.format for picture in pictures(page)} == {"PNG", "JPEG"}
