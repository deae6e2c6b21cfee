"""Our backbones as encoders of CLAM: its scripts, unchanged, take their names.

In CLAM's folder, with the arguments that CLAM's own script takes::

    python -m timm_mvhybrid.integrations.clam extract_features_fp.py --model_name mvhybrid_small_patch16_256 \
        --target_patch_size 256 --data_h5_dir ... --data_slide_dir ... --csv_path ... --feat_dir ... --slide_ext .svs
    python main.py --embed_dim 384 ...

``--checkpoint FILE`` before the script's name takes weights of your own. ``create_heatmaps.py`` runs in the same way,
with ``encoder_arguments: {model_name: mvhybrid_small_patch16_256, target_img_size: 256}`` in its configuration. The
features have 384 numbers, so training needs ``--embed_dim 384``; its default is 1024.

Its ``create_patches_fp.py`` looks for large pieces of tissue; on a small region its default finds nothing, but
``--preset bwh_biopsy.csv`` does. The features are in ``h5_files`` within ``--feat_dir``; ``timm-mvhybrid evaluate
slides`` takes either folder. ``timm-mvhybrid embed`` on its coordinate files gives the same features, by the same
pixels.

CLAM is not a package: it is a clone of github.com/mahmoodlab/CLAM, run from its folder. It was run at commit 53e2409,
whose environment has timm 0.9.8, with which no backbone of this package runs: install this package after it. It runs
with timm 1.0.31.
"""

from __future__ import annotations

import argparse
import runpy
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from timm.data import resolve_data_config
from torch import nn

from ..models import MODEL_NAMES
from .encoder import Transform, load_encoder

__all__ = ["encoder", "install", "main"]


def encoder(
    model_name: str,
    target_img_size: int = 224,
    *,
    pretrained: bool | None = None,
    checkpoint: str | Path | None = None,
    **model_args: Any,
) -> tuple[nn.Module, Transform]:
    """Builds what CLAM's ``get_encoder`` returns.

    Args:
        model_name: A name of ``timm.create_model``.
        target_img_size: Side in px at which patches enter the model; CLAM's default is 224.
        pretrained: Take published weights; None means yes, unless a checkpoint is given.
        checkpoint: Take the weights of this file; as ``checkpoint_path`` it is taken too.
        **model_args: Further arguments of ``timm.create_model``.

    Raises:
        ValueError: The size does not suit the model.
    """
    model, transform = load_encoder(
        model_name,
        pretrained=pretrained,
        checkpoint=checkpoint,
        image_size=target_img_size,
        **model_args,
    )
    own_size = resolve_data_config({}, model=model)["input_size"][-1]
    if target_img_size != own_size:
        warnings.warn(
            f"patches are resized to {target_img_size} px, and {model_name} was made for {own_size} px at 0.5 µm/px; "
            f"give --target_patch_size {own_size} unless your patches have {target_img_size} px",
            stacklevel=2,
        )
    return model, transform


def install(*, checkpoint: str | Path | None = None, **model_args: Any) -> tuple[str, ...]:
    """Adds the six backbones to those that CLAM's ``get_encoder`` knows, in this process.

    Args:
        checkpoint: Take the weights of this file instead of the published ones; as ``checkpoint_path`` it is taken too.
        **model_args: Further arguments of ``timm.create_model``.

    Raises:
        ImportError: CLAM's folder is not on Python's path.
    """
    try:
        models = import_module("models")
        builder = import_module("models.builder")
        theirs = builder.get_encoder
    except (ImportError, AttributeError) as error:
        raise ImportError(
            f"CLAM's models cannot be imported ({error}); run this from the folder of a clone of "
            "github.com/mahmoodlab/CLAM of 2024 or later"
        ) from error
    theirs = getattr(theirs, "replaces", theirs)

    def get_encoder(model_name: str, target_img_size: int = 224) -> tuple[nn.Module, Transform]:
        if model_name not in MODEL_NAMES:
            found: tuple[nn.Module, Transform] = theirs(model_name, target_img_size=target_img_size)
            return found
        return encoder(model_name, target_img_size, checkpoint=checkpoint, **model_args)

    replacement: Any = get_encoder
    replacement.replaces = theirs
    models.get_encoder = builder.get_encoder = replacement  # type: ignore[attr-defined]
    return MODEL_NAMES


class _OurNamesToo:
    """Within it, an option ``--model_name`` with a closed list of choices takes our names too."""

    def __enter__(self) -> None:
        self._theirs = argparse._ActionsContainer.add_argument
        theirs = self._theirs

        def add_argument(container: Any, *names: str, **options: Any) -> Any:
            if "--model_name" in names and "choices" in options:
                options["choices"] = [*options["choices"], *MODEL_NAMES]
            return theirs(container, *names, **options)

        argparse._ActionsContainer.add_argument = add_argument  # type: ignore[method-assign, assignment]

    def __exit__(self, *error: object) -> None:
        argparse._ActionsContainer.add_argument = self._theirs  # type: ignore[method-assign]


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs one of CLAM's scripts, which then takes the names of the backbones.

    Args:
        arguments: ``[--checkpoint FILE] SCRIPT ARGUMENT ...``; None takes the process's.
    """
    parser = argparse.ArgumentParser(
        prog="python -m timm_mvhybrid.integrations.clam",
        description="Runs a script of CLAM that then takes the names of our backbones.",
    )
    parser.add_argument("--checkpoint", type=Path, metavar="FILE", help="weights instead of the published")
    parser.add_argument(
        "script", type=Path, help="extract_features_fp.py or create_heatmaps.py, in CLAM's folder"
    )
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="arguments of the script")
    options = parser.parse_args(arguments)
    if not options.script.is_file():
        parser.error(f"{options.script}: no such script; run this in CLAM's folder")
    # as Python does for a script, so that CLAM finds its own modules
    sys.path.insert(0, str(options.script.resolve().parent))
    before = sys.argv
    sys.argv = [str(options.script), *options.arguments]
    try:
        install(checkpoint=options.checkpoint)
        with _OurNamesToo():
            runpy.run_path(str(options.script), run_name="__main__")
    finally:
        sys.argv = before
        del sys.path[0]


if __name__ == "__main__":
    main()
