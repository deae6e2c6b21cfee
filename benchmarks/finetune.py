"""What the ST token and adapters cost: beside the backbone alone, and beside training all of its weights."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from timm_mvhybrid.finetune import STModel, lora

from .agreement import check_agreement
from .goals import Goal
from .measure import Contender, Effort, Spread, measure
from .memory import peak_extra_bytes
from .report import Report, Table, format_ratio, format_seconds
from .settings import Settings
from .vision_models import create, images

BACKBONES = ("mvhybrid", "vim_einfft", "hydra_einfft", "vit24")
BATCH = 8
MOST_SECONDS = 15.0
"""Time in s for each of ten groups of contenders."""
INFERENCE, TRAINING = "float32 inference", "float32 training step"
ADAPTED = "LoRA step / full step"
# a token that starts at attention, and one that starts at the first block
AT_ATTENTION, AT_FIRST = 1.05, 1.15


FIRST, ATTENTION = "the first block", "the attention half"


def _figure(setting: str, name: str, start: str) -> str:
    return f"{setting}: {name}, ST token from {start} / alone"


GOALS = [
    *(
        Goal(figure=_figure(setting, name, start), relation="≤", bound=bound)
        for setting in (INFERENCE, TRAINING)
        for name, start, bound in (
            ("mvhybrid", ATTENTION, AT_ATTENTION),
            ("mvhybrid", FIRST, AT_FIRST),
            ("vim_einfft", FIRST, AT_FIRST),
            ("hydra_einfft", FIRST, AT_FIRST),
            ("vit24", FIRST, AT_FIRST),
        )
    ),
    *(
        Goal(figure=f"{name}: {ADAPTED}, {what}", relation="≤", bound=0.8)
        for name in ("mvhybrid", "vit24")
        for what in ("time", "peak memory")
    ),
]


def run(settings: Settings) -> Report:
    """Checks that the token changes no feature, then times it, and a step of adapters.

    Args:
        settings: The options.

    Returns:
        The report.
    """
    quick = settings.quick
    x = images(1 if quick else BATCH, quick)
    figures: dict[str, Spread] = {}
    tables = [_token_table(settings, x, figures), _adapter_table(settings, x, figures)]
    return Report(
        name="finetune",
        title="What the ST token and adapters cost on a CPU, 256 px",
        method=(
            f"Random weights, batch {BATCH}. A training step is forward and backward of the mean of the squared tokens, "
            "ST token included, and gradients of all parameters that are trained. Class and patch features with the token "
            "were bit-equal to those without before the timing. Adapters of rank 8 are on all named layers of all blocks; "
            "their step and that of all weights include AdamW. Peak memory is what a process must have for a step: weights and "
            "AdamW's moments, which it holds all the time, and the most that a step allocates beyond them, activations and "
            f"gradients. The goal is for a batch of {BATCH}; the larger the batch, the less the moments count, so the table "
            "has another batch, and the step's own part. One process, interleaved rounds, medians and quartiles; ratios are "
            "those within a round."
        ),
        figures=figures,
        goals=GOALS,
        tables=tables,
        judged=not quick,
    )


def _token_table(settings: Settings, x: Tensor, figures: dict[str, Spread]) -> Table:
    rows = []
    for name in BACKBONES:
        alone: Any = create(name, settings.quick).eval()
        with_token = {}
        for start in (None, 0):
            model = STModel(create(name, settings.quick), start).eval()
            with_token[ATTENTION if model.st_start else FIRST] = model
            _check(name, alone, model, x)
        for setting, make in ((INFERENCE, _inference), (TRAINING, _training)):
            contenders = [Contender(name="alone", call=make(alone, alone.forward_features, x))]
            contenders += [
                Contender(name=start, call=make(model, model.forward_features, x))
                for start, model in with_token.items()
            ]
            times = measure(contenders, _effort(settings))
            for start in with_token:
                ratio = times.ratio(start, "alone")
                figures[_figure(setting, name, start)] = ratio
                seconds = format_seconds(times.spread(start))
                rows.append([name, setting, start, *seconds, *format_ratio(ratio)])
    return Table(
        title="ST token",
        columns=["", "", "from", "ms", "quartiles", "time / alone", "quartiles"],
        rows=rows,
    )


def _adapter_table(settings: Settings, x: Tensor, figures: dict[str, Spread]) -> Table:
    rows = []
    for name in ("mvhybrid", "vit24"):
        full, adapted = create(name, settings.quick), lora(create(name, settings.quick))
        steps = {"full": _Step(full, x), "LoRA": _Step(adapted, x)}
        contenders = [Contender(name=kind, call=step) for kind, step in steps.items()]
        times = measure(contenders, _effort(settings))
        ratio = times.ratio("LoRA", "full")
        figures[f"{name}: {ADAPTED}, time"] = ratio
        row = [name, "LoRA / full", *format_ratio(ratio)]
        for kind in steps:
            rows.append([name, kind, *format_seconds(times.spread(kind)), "", "", ""])
        rows.append([*row, "", "", ""])
        for images_of_step in (x,) if settings.quick else (x, x.repeat(2, 1, 1, 1)):
            # after the rounds, in which the optimiser made its state
            own = {kind: _own_bytes(step, images_of_step) for kind, step in steps.items()}
            peaks = {kind: step.held_bytes() + own[kind] for kind, step in steps.items()}
            memory = peaks["LoRA"] / peaks["full"]
            if images_of_step is x:
                figures[f"{name}: {ADAPTED}, peak memory"] = Spread(median=memory, low=memory, high=memory)
            batch = str(len(images_of_step))
            for kind in steps:
                found = f"{peaks[kind] / 2**20:.0f}", f"{own[kind] / 2**20:.0f}"
                rows.append([name, kind, "", "", batch, *found])
            rows.append(
                [name, "LoRA / full", "", "", batch, f"{memory:.2f}", f"{own['LoRA'] / own['full']:.2f}"]
            )
    return Table(
        title="A step of adapters, and of all weights",
        columns=[
            "",
            "",
            "ms or ratio",
            "quartiles",
            "batch",
            "peak memory / MiB or ratio",
            "of it the step's own / MiB or ratio",
        ],
        rows=rows,
    )


def _own_bytes(step: "_Step", x: Tensor) -> int:
    """Measures what a step allocates beyond weights and moments, on these images."""
    before, step.x = step.x, x
    found = peak_extra_bytes(step)
    step.x = before
    return found


def _effort(settings: Settings) -> Effort:
    """Cuts the time of a group: there are ten."""
    effort = settings.effort(min_rounds=3)
    return replace(effort, budget_s=min(effort.budget_s, MOST_SECONDS))


@torch.no_grad()
def _check(name: str, alone: Any, model: STModel, x: Tensor) -> None:
    tokens, found = alone.forward_features(x), model.features(x)
    expected = {"class": tokens[:, 0], "patch": tokens[:, alone.num_prefix_tokens :]}
    actual = {key: found[key] for key in expected}
    check_agreement(name, actual, {key: value.double() for key, value in expected.items()}, 0.0)


def _inference(model: nn.Module, compute: Callable[[Tensor], Tensor], x: Tensor) -> Callable[[], Tensor]:
    def call() -> Tensor:
        model.eval()
        with torch.no_grad():
            return compute(x)

    return call


def _training(
    model: nn.Module, compute: Callable[[Tensor], Tensor], x: Tensor
) -> Callable[[], Mapping[str, Tensor]]:
    def call() -> Mapping[str, Tensor]:
        model.train()
        names, parameters = zip(*model.named_parameters(), strict=True)
        gradients = torch.autograd.grad(compute(x).square().mean(), parameters, allow_unused=True)
        return {name: grad for name, grad in zip(names, gradients, strict=True) if grad is not None}

    return call


class _Step:
    """A step of AdamW.

    Args:
        model: What is trained.
        x: Images.
    """

    def __init__(self, model: nn.Module, x: Tensor) -> None:
        self.model, self.x = model.train(), x
        trained = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, foreach=True)

    def __call__(self) -> None:
        """Does it."""
        self.optimizer.zero_grad(set_to_none=True)
        self.model(self.x).square().mean().backward()
        self.optimizer.step()

    def held_bytes(self) -> int:
        """Counts weights and the optimiser's state; gradients are the step's own."""
        moments = [x for state in self.optimizer.state.values() for x in state.values()]
        return sum(x.numel() * x.element_size() for x in (*self.model.parameters(), *moments))
