import re

import numpy as np
import pytest
from support.xenium_bundles import turned, um_per_px, write_matrix

from timm_mvhybrid.cohorts.image_alignment import ImageAlignment, read_alignment
from timm_mvhybrid.runtime.errors import DataError

# of the article that image_alignment names: the image's top left corner, and where it lies on the morphology image
PUBLISHED = np.array(
    [
        [0.011071028838929093, 1.2895790134339569, 807.9788953065927],
        [-1.2895790134339569, 0.011071028838929093, 73097.655174759],
        [0, 0, 1],
    ]
)
CORNER_PX = (807.9788953065927, 73097.655174759)


def test_published_direction_of_the_matrix(tmp_path):
    matrix = read_alignment(write_matrix(tmp_path / "matrix.csv", PUBLISHED))
    assert matrix.tolist() == PUBLISHED.tolist()
    alignment = ImageAlignment(matrix=matrix, morphology_um_per_px=0.2125)
    assert alignment.to_morphology(0.0, 0.0) == pytest.approx(CORNER_PX)
    assert alignment.from_um(CORNER_PX[0] * 0.2125, CORNER_PX[1] * 0.2125) == pytest.approx((0, 0), abs=1e-9)
    # 40 × scanners have about 0.274 µm/px
    assert alignment.um_per_px == pytest.approx(0.2125 * np.hypot(0.011071028838929093, 1.2895790134339569))
    assert alignment.sides_um == pytest.approx((alignment.um_per_px,) * 2)


def test_both_directions_undo_each_other_and_sides_are_told():
    alignment = ImageAlignment(matrix=turned(scales=(1.4, 1.2)), morphology_um_per_px=0.5)
    x, y = np.random.default_rng(0).uniform(0, 50000, (2, 100))
    back = alignment.from_um(*(0.5 * values for values in alignment.to_morphology(x, y)))
    np.testing.assert_allclose(back, (x, y), rtol=0, atol=1e-9)
    assert alignment.sides_um == pytest.approx((0.6, 0.7))
    assert alignment.um_per_px == pytest.approx(um_per_px(alignment.matrix, 0.5))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("1,0,0\n0,1,0\n", "must hold three lines of three finite numbers, not 2 × 3"),
        ("1,0,0\n0,1,0\n0,0\n", "must hold three lines of three numbers"),
        ("a,b,c\n0,1,0\n0,0,1\n", "must hold three lines of three numbers"),
        ("", "must hold three lines of three finite numbers"),
        ("nan,0,0\n0,1,0\n0,0,1\n", "not NaN or infinite values"),
        ("1,0,0\n0,1,0\n30,40,1\n", "the last line is 30, 40, 1, not 0, 0, 1.*transposed: write it"),
        ("1,0,5\n0,1,6\n0.001,0,1\n", "the last line is 0.001, 0, 1, not 0, 0, 1.*export it again"),
        ("1,2,5\n2,4,6\n0,0,1\n", "the matrix is singular"),
        ("0,0,5\n0,0,6\n0,0,1\n", "the matrix is singular"),
        (
            "fixedX,fixedY,alignmentX,alignmentY\n1,2,3,4\n",
            "holds the keypoints of an alignment; give its matrix",
        ),
    ],
)
def test_what_is_no_alignment(tmp_path, text, problem):
    file = tmp_path / "matrix.csv"
    file.write_text(text)
    with pytest.raises(DataError, match=f"^{re.escape(str(file))}: .*{problem}"):
        read_alignment(file)


def test_archives_and_absent_files(tmp_path):
    (tmp_path / "alignment.zip").write_bytes(b"PK\x03\x04\xff\xfe\x00")
    with pytest.raises(DataError, match=r"alignment\.zip: .*matrix\.csv"):
        read_alignment(tmp_path / "alignment.zip")
    with pytest.raises(DataError, match=r"absent\.csv: cannot be read as a CSV"):
        read_alignment(tmp_path / "absent.csv")


def test_byte_order_mark_blank_lines_and_rounded_last_row(tmp_path):
    file = tmp_path / "matrix.csv"
    file.write_bytes(b"\xef\xbb\xbf2,0,5\r\n0,2,6\r\n0,1e-16,1.0\r\n\r\n")
    assert read_alignment(file).tolist() == [[2, 0, 5], [0, 2, 6], [0, 0, 1]]
