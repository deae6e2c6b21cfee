"""Whole models on a CPU beside timm's ViT-S of the same depth and number of tokens."""

import copy
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from timm_mvhybrid.ops import use_implementation

from .agreement import check_agreement
from .goals import Goal
from .measure import Contender, Spread, measure
from .report import Report, Table, format_ratio, format_seconds
from .settings import Settings
from .vision_models import MVHYBRID, STATE_SPACE_MODELS, VIT, create, create_vit, images

INFERENCE = "float32 inference, batch {}"
BFLOAT16 = "bfloat16 autocast inference, batch {}"
TRAINING = "float32 training step, batch {}"
BATCHES = (1, 8, 32)
TRAINING_BATCH = 8
CONTENDERS = (*STATE_SPACE_MODELS, "vit24")
PLAIN = f"{MVHYBRID}, scans in plain torch"
LIMIT = 1e-4
"""Largest error of float32 features, relative to the largest feature in float64."""


def _goal(setting: str, model: str, bound: float) -> Goal:
    return Goal(figure=f"{setting}: {model} / {VIT}", relation="≤", bound=bound)


GOALS = [
    _goal(INFERENCE.format(32), MVHYBRID, 0.9),
    _goal(INFERENCE.format(8), MVHYBRID, 0.95),
    _goal(INFERENCE.format(1), MVHYBRID, 1.2),
    _goal(TRAINING.format(8), MVHYBRID, 1.1),
    _goal(BFLOAT16.format(32), MVHYBRID, 1.6),
    *(
        _goal(INFERENCE.format(batch), model, bound)
        for model, bound in (("hydra_hybrid", 1.5), ("hydra_einfft", 1.5), ("vim_einfft", 2.5))
        for batch in BATCHES
    ),
]


def run(settings: Settings) -> Report:
    """Checks our models against the reference scans in float64, then times them beside the ViT.

    Args:
        settings: The options.

    Returns:
        The report.
    """
    quick = settings.quick
    vit = create_vit(quick)
    models = {VIT: vit, **{name: create(name, quick) for name in CONTENDERS}}
    errors = {name: check_model(name, models[name], images(1, quick)) for name in CONTENDERS}
    tokens = {name: _num_tokens(model, images(1, quick)) for name, model in models.items()}
    if len(set(tokens.values())) > 1:
        raise RuntimeError(f"the models do not see the same number of tokens: {tokens}")

    figures: dict[str, Spread] = {}
    tables = [
        Table(
            title="Error of float32 features against float64 with the reference scans, relative to the largest",
            columns=["", "error", "tokens", "parameters / M"],
            rows=[
                [name, f"{error:.1e}", str(tokens[name]), f"{_millions(models[name]):.1f}"]
                for name, error in errors.items()
            ]
            + [[VIT, "–", str(tokens[VIT]), f"{_millions(vit):.1f}"]],
        )
    ]

    def compare(setting: str, make: Callable[[nn.Module], Callable[[], object]]) -> None:
        contenders = [Contender(name=name, call=make(model)) for name, model in models.items()]
        contenders.append(Contender(name=PLAIN, call=in_plain_torch(make(models[MVHYBRID]))))
        times = measure(contenders, settings.effort(min_rounds=3))
        rows = []
        for name in (*models, PLAIN):
            ratio = times.ratio(name, VIT)
            if name != VIT:
                figures[f"{setting}: {name} / {VIT}"] = ratio
            rows.append([name, *format_seconds(times.spread(name)), *format_ratio(ratio)])
        tables.append(
            Table(
                title=f"{setting}, {len(times.seconds[VIT])} rounds".capitalize(),
                columns=["", "ms", "quartiles", f"time / {VIT}", "quartiles"],
                rows=rows,
            )
        )

    for batch in BATCHES:
        x = images(min(batch, 2) if quick else batch, quick)
        compare(INFERENCE.format(batch), partial(inference, x=x))
    compare(BFLOAT16.format(BATCHES[-1]), partial(inference, x=x, dtype=torch.bfloat16))
    x = images(1 if quick else TRAINING_BATCH, quick)
    compare(TRAINING.format(TRAINING_BATCH), partial(training_step, x=x))
    return Report(
        name="model",
        title="Whole models on a CPU beside timm's ViT-S of the same depth, 256 px",
        method=(
            "Random weights. A training step is forward and backward of the mean of the squared features, gradients "
            "of all parameters, no optimizer. Features agreed with float64 models on the reference scans to "
            f"{LIMIT:g} before the timing. One process, interleaved rounds, medians and quartiles; ratios are those "
            "within a round."
        ),
        figures=figures,
        goals=GOALS,
        tables=tables,
        judged=not quick,
    )


def in_plain_torch(call: Callable[[], object]) -> Callable[[], object]:
    """Wraps a call so that its scans run without kernels.

    Args:
        call: Does the work once.

    Returns:
        A call that does the same work.
    """

    def plain() -> object:
        with use_implementation("cpu"):
            return call()

    return plain


def check_model(name: str, model: nn.Module, x: Tensor, limit: float = LIMIT) -> float:
    """Compares a model's features with those of a float64 copy on the reference scans.

    Args:
        name: Of the model.
        model: In float32.
        x: Images.
        limit: Largest error allowed.

    Returns:
        The error.
    """
    # cuDNN would round the patches to TF32
    with torch.no_grad(), torch.backends.cudnn.flags(enabled=False):
        actual = model.eval()(x)
        with use_implementation("reference"):
            exact = copy.deepcopy(model).double()(x.double())
    return check_agreement(name, {"features": actual}, {"features": exact}, limit)["features"]


def inference(model: nn.Module, x: Tensor, dtype: torch.dtype | None = None) -> Callable[[], Tensor]:
    """Makes a call that computes features without gradients.

    Args:
        model: The model, put into evaluation mode by the call.
        x: Images.
        dtype: Autocast dtype.

    Returns:
        The call.
    """

    def call() -> Tensor:
        model.eval()
        with torch.no_grad(), torch.autocast(x.device.type, dtype=dtype, enabled=dtype is not None):
            return model(x)

    return call


def training_step(
    model: nn.Module, x: Tensor, dtype: torch.dtype | None = None
) -> Callable[[], Mapping[str, Tensor]]:
    """Makes a call that computes the gradients of all parameters.

    Args:
        model: The model, put into training mode by the call.
        x: Images.
        dtype: Autocast dtype.

    Returns:
        The call.
    """

    def call() -> Mapping[str, Tensor]:
        model.train()
        with torch.autocast(x.device.type, dtype=dtype, enabled=dtype is not None):
            loss = model(x).float().square().mean()
        names, parameters = zip(*model.named_parameters(), strict=True)
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        return {name: grad for name, grad in zip(names, gradients, strict=True) if grad is not None}

    return call


def _num_tokens(model: Any, x: Tensor) -> int:
    return model.eval().forward_features(x).shape[1]


def _millions(model: nn.Module) -> float:
    return sum(parameter.numel() for parameter in model.parameters()) / 1e6
