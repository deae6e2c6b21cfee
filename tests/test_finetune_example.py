"""The example of fine-tuning runs on drawn sections, and prints a row for everything that it compares."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.coloured_sections import GENES, write_sections

EXAMPLE = Path(__file__).parents[1] / "examples" / "finetune_her2st.py"


@pytest.mark.slow
def test_every_method_gets_a_row(tmp_path):
    pytest.importorskip("lightly")
    data = write_sections(tmp_path / "sections", ("A1", "A2", "B1"))
    sets = tmp_path / "sets.gmt"
    sets.write_text("".join(f"S{i}\tdrawn\t" + "\t".join(GENES[i : i + 6]) + "\n" for i in range(4)))
    has_peft = importlib.util.find_spec("peft") is not None
    command = [sys.executable, EXAMPLE, data, "--output", tmp_path / "runs", "--size", "64", "--steps", "2"]
    command += ["--only", "B1", "--seeds", "2", *(["--pathways", sets] if has_peft else [])]
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    table = result.stdout.split("standard error over seeds")[1]
    rows = {label.strip(): (r, error) for label, r, error in re.findall(r"(.+?) +(-?0\.\d+) ± (\S+)", table)}
    expected = [
        f"frozen encoder, {name}" for name in ("class token", "mean of patch tokens", "ST token as drawn")
    ]
    expected += ["22 statistics of colour and contrast"]
    expected += [f"MINT, {name}" for name in ("class token", "ST token", "class and ST token")]
    assert list(rows) == [*expected, *(["STAMP, class token"] if has_peft else [])]
    # the statistics have no seed, and the genes follow the colours
    assert float(rows[expected[3]][1]) == 0
    assert float(rows[expected[3]][0]) > 0.3
