"""Our backbones in kaiko-eva: benchmark → embeddings → head → scores, in eva's own command line.

Configurations of this package name a backbone by its function; print their path, and give one to eva::

    eva predict_fit --config $(python -m timm_mvhybrid.integrations.kaiko_eva --configuration classification)
    eva fit --config $(python -m timm_mvhybrid.integrations.kaiko_eva --configuration segmentation)

Configurations of eva, unchanged, name a model of eva's registry by ``MODEL_NAME``. The registry holds the backbones if
this package is imported before eva, which is what this module does when it is run in place of ``eva``::

    export MODEL_NAME=timm/mvhybrid_small_patch16_256
    python -m timm_mvhybrid.integrations.kaiko_eva predict_fit --config bach.yaml

It also sets, unless they are set, the other variables that eva's configurations read, to the values of ``environment``:
without them eva builds the model with random weights and normalises by the colours of ImageNet.

kaiko-eva 0.4 with jsonargparse below 4.52, since it cannot read a loss such as ``torch.nn.CrossEntropyLoss`` with later
ones.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

import timm
from timm.data.config import resolve_data_config

from ..models import ALL_MODEL_NAMES, MODEL_NAMES

__all__ = ["configuration", "environment", "main"]

TASKS = ("classification", "segmentation")
_REGISTRY = "timm/"


def configuration(task: str) -> Path:
    """Returns the path of a configuration of this package.

    Raises:
        ValueError: There is none for this task.
    """
    if task not in TASKS:
        raise ValueError(
            f"there is no configuration for '{task}'; there is one for {' and one for '.join(TASKS)}"
        )
    return Path(__file__).with_name(f"kaiko_eva_{task}.yaml")


def environment(model_name: str, checkpoint_path: str | Path | None = None) -> dict[str, str]:
    """Returns the variables by which eva's own configurations take a backbone.

    Args:
        model_name: A backbone of this package, without a tag: eva's registry has none.
        checkpoint_path: A file of weights; None for the published ones.

    Returns:
        ``MODEL_NAME``, ``MODEL_EXTRA_KWARGS``, ``IN_FEATURES``, ``RESIZE_DIM`` (px), ``NORMALIZE_MEAN`` and
        ``NORMALIZE_STD``.

    Raises:
        ValueError: It is not a backbone of this package.
    """
    if model_name not in ALL_MODEL_NAMES:
        raise ValueError(
            f"'{model_name}' is not a backbone of this package; these are: {', '.join(MODEL_NAMES)}"
        )
    model = timm.create_model(model_name, device="meta")
    config = resolve_data_config({}, model=model)
    weights = {"checkpoint_path": str(checkpoint_path)} if checkpoint_path else {"pretrained": True}
    return {
        "MODEL_NAME": f"{_REGISTRY}{model_name}",
        "MODEL_EXTRA_KWARGS": json.dumps(weights),
        "IN_FEATURES": str(model.num_features),
        "RESIZE_DIM": str(config["input_size"][1]),
        "NORMALIZE_MEAN": json.dumps(list(config["mean"])),
        "NORMALIZE_STD": json.dumps(list(config["std"])),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs eva's command line with the backbones in its registry, or prints the path of a configuration.

    Args:
        arguments: What follows ``eva`` on the command line, or ``--configuration TASK``; by default the process's own.

    Returns:
        0; eva ends the process itself if it fails.

    Raises:
        ImportError: kaiko-eva is not installed.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments[:1] == ["--configuration"]:
        print(configuration(arguments[1] if len(arguments) > 1 else ""))
        return 0
    name = os.environ.get("MODEL_NAME", "").removeprefix(_REGISTRY)
    if name in ALL_MODEL_NAMES:
        for variable, value in environment(name).items():
            os.environ.setdefault(variable, value)
    try:
        cli = import_module("eva.core.cli").cli
    except ImportError as error:
        raise ImportError(
            f"kaiko-eva cannot be imported ({error}); pip install 'kaiko-eva[vision]' 'jsonargparse<4.52'"
        ) from error
    sys.argv = ["eva", *arguments]
    cli()
    return 0


if __name__ == "__main__":
    sys.exit(main())
