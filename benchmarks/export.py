"""Our models through torch.export, torch.compile and ONNX: seconds, sizes, errors, latency."""

import importlib.util
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from .agreement import DisagreementError, relative_error
from .goals import Goal
from .measure import Contender, Spread, measure
from .model import LIMIT, check_model, inference
from .report import Report, Table
from .settings import Settings
from .vision_models import SMALL_MODELS, create, images

ONNX_SECONDS = "ONNX export, seconds: {}"
ONNX_ERROR = "onnxruntime error, relative to the largest feature: {}"
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
BATCHES = (1, 8)


def run(settings: Settings, models: Sequence[str] = (), compile_backend: str = "inductor") -> Report:
    """Checks each model against the reference scans, then exports, compiles and runs it.

    Args:
        settings: The options.
        models: Which; all six by default.
        compile_backend: Backend of torch.compile.

    Returns:
        The report.

    Raises:
        DisagreementError: A model disagrees with the reference, or its export or compilation with the model.
    """
    quick, notes = settings.quick, []
    names = tuple(models) or SMALL_MODELS
    missing = [package for package in ONNX_PACKAGES if importlib.util.find_spec(package) is None]
    if missing:
        notes.append(
            f"ONNX: not measured, {', '.join(missing)} not installed; pip install 'timm-mvhybrid[onnx]'"
        )
    compiles = compile_backend != "inductor" or _has_compiler()
    if not compiles:
        notes.append("torch.compile: not measured, no C++ compiler; install g++ or set CXX")

    figures: dict[str, Spread] = {}
    columns: dict[str, list[str]] = {}
    with tempfile.TemporaryDirectory() as folder, _fresh_compiler_cache(Path(folder, "cache")):
        # what a process does once, importing compiler and exporter, is not a cost of the model
        first = create("vit12", quick=True).eval()
        if compiles:
            with torch.no_grad():
                torch.compile(first, fullgraph=True, backend=compile_backend)(images(2, quick=True))
        if not missing:
            _export_onnx(first, Path(folder, "first.onnx"))
        for name in names:
            model = create(name, quick).eval()
            check_model(name, model, images(1, quick))
            cells = _torch_export(model, images(2, quick))
            if compiles:
                cells |= _torch_compile(name, model, images(2, quick), compile_backend, settings)
            if not missing:
                cells |= _onnx(name, model, Path(folder, f"{name}.onnx"), settings, figures)
            for column, cell in cells.items():
                columns.setdefault(column, []).append(cell)
    return Report(
        name="export",
        title="Models through torch.export, torch.compile and ONNX, 256 px, on a CPU",
        method=(
            "Batch is dynamic in torch.export and ONNX. Seconds are those of one call, with empty compiler caches; "
            "those of ONNX include its verification. "
            "Latencies are medians of interleaved rounds, quartiles in brackets, in units of eager torch. Features "
            f"agreed with float64 models on the reference scans to {LIMIT:g}, and the compiled and exported ones with "
            "eager torch."
        ),
        figures=figures,
        goals=[
            goal
            for name in names
            for goal in (
                Goal(figure=ONNX_SECONDS.format(name), relation="≤", bound=60),
                Goal(figure=ONNX_ERROR.format(name), relation="≤", bound=1e-4),
            )
        ],
        tables=[
            Table(
                title="Models",
                columns=["", *columns],
                rows=[[name, *(column[i] for column in columns.values())] for i, name in enumerate(names)],
            )
        ],
        notes=notes,
        judged=not quick,
    )


def _torch_export(model: nn.Module, x: Tensor) -> dict[str, str]:
    """Times torch.export with a dynamic batch."""
    with torch.no_grad():
        seconds, program = _timed(
            lambda: torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
        )
        error = relative_error(program.module()(x[:1]), model(x[:1]).double())
    _agree("torch.export", error)
    nodes = sum(node.op == "call_function" for node in program.graph.nodes)
    return {"torch.export s": f"{seconds:.1f}", "nodes": str(nodes)}


def _torch_compile(
    name: str, model: nn.Module, x: Tensor, backend: str, settings: Settings
) -> dict[str, str]:
    """Times the first call of the compiled model, and later ones beside eager ones."""
    torch.compiler.reset()
    compiled = cast(nn.Module, torch.compile(model, fullgraph=True, backend=backend))
    with torch.no_grad():
        seconds, features = _timed(lambda: compiled(x))
        _agree(f"torch.compile of {name}", relative_error(features, model(x).double()))
    ratio = _ratio(inference(compiled, x), inference(model, x), settings)
    return {f"torch.compile ({backend}) s": f"{seconds:.1f}", "compiled / eager, batch 2": ratio[0]}


def _onnx(
    name: str, model: nn.Module, path: Path, settings: Settings, figures: dict[str, Spread]
) -> dict[str, str]:
    """Times the export to ONNX, and onnxruntime beside eager torch."""
    seconds, _ = _timed(lambda: _export_onnx(model, path))
    run_session = _session(path, settings.threads)
    x = images(3, settings.quick)
    with torch.no_grad():
        error = relative_error(run_session(x), model(x).double())
    figures[ONNX_SECONDS.format(name)] = _point(seconds)
    figures[ONNX_ERROR.format(name)] = _point(error)
    cells = {"ONNX s": f"{seconds:.1f}", "MiB": f"{path.stat().st_size / 2**20:.1f}", "error": f"{error:.1e}"}
    for batch in BATCHES:
        x = images(min(batch, 2) if settings.quick else batch, settings.quick)
        text, ratio = _ratio(partial(run_session, x), inference(model, x), settings)
        figures[f"onnxruntime latency / eager torch, batch {batch}: {name}"] = ratio
        cells[f"onnxruntime / eager, batch {batch}"] = text
    return cells


def _export_onnx(model: nn.Module, path: Path) -> None:
    from timm_mvhybrid.models import export_onnx

    export_onnx(model, path)


def _session(path: Path, threads: int) -> Callable[[Tensor], Tensor]:
    """Opens a file in onnxruntime."""
    import onnxruntime  # type: ignore[import-untyped]

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda x: torch.from_numpy(session.run(None, {name: x.numpy()})[0])


def _ratio(
    numerator: Callable[[], object], denominator: Callable[[], object], settings: Settings
) -> tuple[str, Spread]:
    """Compares latencies; returns the ratio as text too."""
    contenders = [
        Contender(name="numerator", call=numerator),
        Contender(name="denominator", call=denominator),
    ]
    ratio = measure(contenders, settings.effort(max_rounds=11)).ratio("numerator", "denominator")
    return f"{ratio.median:.2f} ({ratio.low:.2f} – {ratio.high:.2f})", ratio


def _agree(what: str, error: float) -> None:
    if not error <= LIMIT:
        raise DisagreementError(f"{what} disagrees with eager torch: relative error {error:.2g}")


def _timed(call: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = call()
    return time.perf_counter() - start, result


def _point(value: float) -> Spread:
    return Spread(median=value, low=value, high=value)


def _has_compiler() -> bool:
    """Whether inductor finds a C++ compiler."""
    return any(shutil.which(name) for name in (os.environ.get("CXX"), "g++", "clang++") if name)


@contextmanager
def _fresh_compiler_cache(folder: Path) -> Iterator[None]:
    """Gives inductor an empty cache, so that an earlier run does not speed up this one."""
    before = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ["TORCHINDUCTOR_CACHE_DIR"]
        else:
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = before
