"""The example of fine-tuning runs on drawn sections, and prints a row for everything that it compares."""

import gzip
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

EXAMPLE = Path(__file__).parents[1] / "examples" / "finetune_her2st.py"
GENES = [f"G{index:02d}" for index in range(12)]


def write_section(root, name, seed):
    """Thirty spots, 50 px or 200 µm apart, whose genes follow the colour under them."""
    rng = np.random.default_rng(seed)
    places = [(x, y) for y in range(5) for x in range(6)]
    pixels = rng.integers(200, 255, (300, 350, 3), dtype=np.uint8)
    weights = np.random.default_rng(9).normal(size=(3, len(GENES))) / 40
    counts, spots = ["\t".join(["", *GENES])], ["x\ty\tnew_x\tnew_y\tpixel_x\tpixel_y\tselected"]
    for x, y in places:
        column, row = 40 + 50 * x, 40 + 50 * y
        colour = rng.integers(60, 200, 3)
        pixels[row - 20 : row + 20, column - 20 : column + 20] = colour + rng.integers(-20, 20, (40, 40, 1))
        values = rng.poisson(np.exp(2 + (colour - 130) @ weights))
        counts.append("\t".join([f"{x}x{y}", *map(str, values)]))
        spots.append(f"{x}\t{y}\t{x}\t{y}\t{column}\t{row}\t1")
    for folder, file, content in (
        ("counts", f"{name}.tsv.gz", gzip.compress("\n".join(counts).encode())),
        ("spots", f"{name}_selection.tsv", "\n".join(spots).encode()),
    ):
        (root / folder).mkdir(parents=True, exist_ok=True)
        (root / folder / file).write_bytes(content)
    (root / "images").mkdir(exist_ok=True)
    Image.fromarray(pixels).save(root / "images" / f"{name}.png")


def test_every_method_gets_a_row(tmp_path):
    pytest.importorskip("lightly")
    data = tmp_path / "sections"
    for seed, name in enumerate(("A1", "A2", "B1")):
        write_section(data, name, seed)
    (data / "sections.json").write_text(json.dumps({n: {"patient": n[0]} for n in ("A1", "A2", "B1")}))
    sets = tmp_path / "sets.gmt"
    sets.write_text("".join(f"S{i}\tdrawn\t" + "\t".join(GENES[i : i + 6]) + "\n" for i in range(4)))
    has_peft = importlib.util.find_spec("peft") is not None
    command = [sys.executable, EXAMPLE, data, "--output", tmp_path / "runs", "--size", "64", "--steps", "2"]
    command += ["--only", "B1", "--seeds", "2", *(["--pathways", sets] if has_peft else [])]
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    table = result.stdout.split("standard error over seeds")[1]
    rows = {label.strip(): (r, error) for label, r, error in re.findall(r"(.+?) +(-?0\.\d+) ± (\S+)", table)}
    expected = ["22 statistics of colour and contrast", "frozen encoder, class token"]
    expected += [f"MINT, {name}" for name in ("class token", "ST token", "class and ST token")]
    assert list(rows) == [*expected, *(["STAMP, class token"] if has_peft else [])]
    # the statistics have no seed, and the genes follow the colours
    assert float(rows[expected[0]][1]) == 0
    assert float(rows[expected[0]][0]) > 0.3
