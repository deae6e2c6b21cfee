import gzip
import re

import pytest

from timm_mvhybrid.cohorts import read_gmt
from timm_mvhybrid.cohorts.gene_sets import match_sets
from timm_mvhybrid.runtime.errors import DataError

GENES = [f"G{index}" for index in range(8)]


def write(tmp_path, text, name="sets.gmt"):
    file = tmp_path / name
    file.write_bytes(text.encode() if name.endswith("gmt") else gzip.compress(text.encode()))
    return file


@pytest.mark.parametrize("name", ["sets.gmt", "sets.gmt.gz", "compressed_in_secret"])
def test_names_and_genes_are_stripped_and_repetitions_in_a_set_are_kept_once(tmp_path, name):
    text = "\ufeffB SET \tabout\t G1\tG2 \t\tG1\t\r\n\n  \nA\t\tG3\r\n"
    assert read_gmt(write(tmp_path, text, name)) == {"B SET": ["G1", "G2"], "A": ["G3"]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("A\td\tG1\nB\td\tG2\nA\td\tG3\n", "line 3: the set 'A' is also in line 1"),
        ("A\td\tG1\nA \td\tG1\n", "line 2: the set 'A' is also in line 1"),
        ("A\td\tG1\n\nB\td\n", "line 3: the set 'B' has no genes"),
        ("A\td\t \t\n", "line 1: the set 'A' has no genes"),
        ("A\td\tG1\nB G1 G2\n", "line 2 must hold a name, a description and genes"),
        ("A\td\tG1\n\td\tG2\n", "line 2 must hold a name"),
        ("\n \n", "holds no gene set"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_with_its_line(tmp_path, text, message):
    file = write(tmp_path, text)
    with pytest.raises(DataError, match=r"sets\.gmt") as caught:
        read_gmt(file)
    assert message in str(caught.value)


def test_files_that_cannot_be_read(tmp_path):
    whole = gzip.compress(b"A\td\tG1\n" * 100)
    for name, content in {
        "cut.gz": whole[:-9],
        "latin.gmt": b"A\td\tG\xe9\n",
        "crc.gz": whole[:-8] + b"\0" * 8,
    }.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=f"{re.escape(name)}: cannot be read as a GMT file"):
            read_gmt(tmp_path / name)
    with pytest.raises(DataError, match=r"absent\.gmt: cannot be read as a GMT file .No such file"):
        read_gmt(tmp_path / "absent.gmt")


def test_sets_keep_their_order_and_say_what_was_measured():
    matched = match_sets(
        GENES, {"Z": ["G1", "G0", "G1", "no"], "few": ["G2"], "A": ["G7", " G3 "]}, min_genes=2
    )
    assert matched.names == ("Z", "A")
    assert matched.num_genes.tolist() == [3, 2]
    assert matched.num_measured.tolist() == [2, 2]
    assert matched.membership.toarray().T.tolist() == [[1, 1, 0, 0, 0, 0, 0, 0], [0, 0, 0, 1, 0, 0, 0, 1]]
    assert matched.dropped == {"few": "1 of 1 genes measured, `min_genes` is 2"}


def test_another_case_is_named_and_matched_on_request_only():
    sets = {"A": ["g1", "G2", "g3", "other"]}
    with pytest.raises(
        DataError, match=r"1 of the 4 genes.* 3 would match in upper case: give `ignore_case=True`"
    ):
        match_sets(GENES, sets, min_genes=2)
    matched = match_sets(GENES, sets, min_genes=2, ignore_case=True)
    assert (matched.num_measured.tolist(), matched.num_by_case_alone) == ([3], 0)
    assert match_sets(GENES, sets, min_genes=1).num_by_case_alone == 2
    assert match_sets(GENES, {"A": ["g1", "G1"]}, min_genes=1, ignore_case=True).num_genes.tolist() == [1]
    with pytest.raises(
        DataError, match="'G1' occurs more than once; rename one of the genes that differ by case"
    ):
        match_sets([*GENES, "g1"], sets, ignore_case=True)


@pytest.mark.parametrize(
    ("sets", "options", "message"),
    [
        ({}, {}, "`gene_sets` is empty"),
        ({"A": []}, {}, "the set 'A' has no genes"),
        ({"A": "G1"}, {}, "the set 'A' is the text 'G1'; give a list"),
        ({"A": ["X"]}, {}, "no gene of `gene_sets` is among `genes`.*give both by the same kind of name"),
        ({"A": ["G1"]}, {}, "no set of `gene_sets` can be scored.*lower `min_genes`, which is 5"),
        ({"A": ["G1"]}, {"min_genes": 0}, "`min_genes` is 0"),
    ],
)
def test_sets_that_cannot_be_used(sets, options, message):
    with pytest.raises(DataError, match=message):
        match_sets(GENES, sets, **options)


def test_a_gene_that_was_measured_twice_is_refused():
    with pytest.raises(DataError, match="gene 'G1' occurs more than once"):
        match_sets(["G1", "G2", "G1"], {"A": ["G1"]}, min_genes=1)
