"""Runs of MINT and STAMP of a few steps, on small cohorts of spots and of transcripts."""

import dataclasses
import json

from support.measured_cohorts import write_manifest, write_spots, write_transcripts
from support.pretraining import change

from timm_mvhybrid.finetune.config import MINT_PRESETS, STAMP_PRESETS, DataConfig

NUM_STEPS = 4


def write_cohorts(folder):
    """A manifest of a cohort of spots and one of transcripts, each of two studies, and gene sets."""
    write_spots(folder / "spots", {"S0": "A", "S1": "B"}, num_spots=12)
    write_transcripts(folder / "cells", {"T0": "A", "T1": "B"})
    sets = folder / "sets.gmt"
    genes = [f"G{index:02d}" for index in range(12)]
    sets.write_text("".join(f"SET{i}\tfrom\t" + "\t".join(genes[i : i + 6]) + "\n" for i in range(5)))
    return write_manifest(
        folder / "cohorts.json", {"path": "spots", "normalise": "cpm"}, {"path": "cells", "weight": 2.0}
    )


def mint_settings(output, manifest, **changes):
    """The smoke preset, smaller still; changes name a section's fields as `section__field`."""
    return _small(
        MINT_PRESETS["smoke"], output, manifest, {"mint__validate_every_steps": 2, **_MINT, **changes}
    )


def stamp_settings(output, manifest, **changes):
    """Likewise of STAMP."""
    gmt = manifest.parent / "sets.gmt"
    return _small(
        STAMP_PRESETS["smoke"],
        output,
        manifest,
        {"data__pathways": gmt, "stamp__validate_every_steps": 2, **changes},
    )


def _small(preset, output, manifest, changes):
    pathways = changes.get("data__pathways")
    data = DataConfig(
        sources=(str(manifest),),
        num_workers=0,
        token_grid=4,
        token_pool=2,
        hold_out=("B",),
        pathways=pathways,
    )
    base = {
        "num_steps": NUM_STEPS,
        "batch_size": 4,
        "crops__global_size_px": 64,
        "optimizer__warmup_steps": 1,
        "checkpoint__every_steps": 2,
        "checkpoint__keep": 0,
    }
    return change(preset(output=output, data=data), **{**base, **changes})


_MINT = {
    "head__num_prototypes": 32,
    "head__hidden_dim": 32,
    "head__bottleneck_dim": 16,
    "crops__local_size_px": 32,
    "loss__teacher_temperature_warmup_steps": 3,
}


def write_config(config, path):
    """A file that `--config` reads."""
    path.write_text(json.dumps(dataclasses.asdict(config), default=str))
    return path
