"""Names of other packages' scans → functions, or what to install.

Nothing of them is copied here: each is imported from its installed package.
"""

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Scan = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
"""u, delta, A, B, C, D, delta_bias → y, with softplus."""

INSTALL = "make bench-install"


class MissingPeerError(Exception):
    """A peer is not installed; the message says how to install it."""


def mamba_ssm_reference() -> Scan:
    """Returns mamba_ssm's ``selective_scan_ref``, in channel-major layout.

    Returns:
        The scan of float32 tensors.

    Raises:
        MissingPeerError: mamba-ssm is not installed.
    """
    scan = mamba_ssm_module("mamba_ssm.ops.selective_scan_interface").selective_scan_ref
    return lambda u, delta, A, B, C, D, bias: scan(u, delta, A, B, C, D, delta_bias=bias, delta_softplus=True)


def mamba_ssm_cuda() -> Scan:
    """Returns mamba_ssm's CUDA kernels, ``selective_scan_fn``, in channel-major layout.

    Returns:
        The scan.

    Raises:
        MissingPeerError: mamba-ssm is not installed, or was installed without its CUDA extension.
    """
    try:
        importlib.import_module("selective_scan_cuda")
    except ImportError as error:
        raise MissingPeerError(
            f"mamba_ssm CUDA kernels: not available ({error}); build them with --sdist-dir"
        ) from error
    scan = mamba_ssm_module("mamba_ssm.ops.selective_scan_interface").selective_scan_fn
    return lambda u, delta, A, B, C, D, bias: scan(u, delta, A, B, C, D, delta_bias=bias, delta_softplus=True)


def mamba_ssm_chunk_scan() -> Callable[..., Tensor]:
    """Returns mamba_ssm's Triton kernels of the SSD scan, ``mamba_chunk_scan_combined``.

    Returns:
        The function.

    Raises:
        MissingPeerError: mamba-ssm is not installed.
    """
    return mamba_ssm_module("mamba_ssm.ops.triton.ssd_combined").mamba_chunk_scan_combined


def mamba_ssm_module(name: str) -> Any:
    """Imports one module of mamba_ssm, and nothing that it does not need.

    The package's own ``__init__`` imports its CUDA extension, its language models and their dependencies; without a
    GPU none of this can be imported. So a bare package with the same folder takes its place while the module is
    loaded, and empty modules stand in for the extension and for a Triton layer norm that no scan calls.

    Args:
        name: Dotted name within mamba_ssm.

    Returns:
        The module.

    Raises:
        MissingPeerError: It is not installed, or does not load.
    """
    specification = importlib.util.find_spec("mamba_ssm")
    if specification is None or specification.submodule_search_locations is None:
        raise MissingPeerError(f"mamba_ssm: not installed; {INSTALL}")
    package = ModuleType("mamba_ssm")
    package.__path__ = list(specification.submodule_search_locations)
    stand_ins = {"mamba_ssm": package}
    if importlib.util.find_spec("selective_scan_cuda") is None:
        stand_ins["selective_scan_cuda"] = ModuleType("selective_scan_cuda")
        layer_norm = ModuleType("mamba_ssm.ops.triton.layer_norm")
        layer_norm._layer_norm_fwd = None  # type: ignore[attr-defined]
        stand_ins[layer_norm.__name__] = layer_norm
    with _modules_in_place(stand_ins):
        try:
            return importlib.import_module(name)
        except ImportError as error:
            raise MissingPeerError(f"{name}: does not load ({error}); {INSTALL}") from error


def mambapy_pscan() -> Scan:
    """Returns mambapy's parallel scan with what its block puts around it, in token-major layout.

    Returns:
        The scan.

    Raises:
        MissingPeerError: mambapy is not installed.
    """
    try:
        block = importlib.import_module("mambapy.mamba").MambaBlock
    except ImportError as error:
        raise MissingPeerError(f"mambapy: not installed ({error}); pip install mambapy") from error

    def scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, bias: Tensor) -> Tensor:
        # the method uses nothing of its object
        return block.selective_scan(None, u, F.softplus(delta + bias), A, B, C, D)

    return scan


def torch_associative_scan() -> Scan:
    """Returns the scan by torch's ``associative_scan``, in token-major layout.

    Returns:
        The scan.

    Raises:
        MissingPeerError: This torch has no such operator, or it has no backward pass yet.
    """
    try:
        # the package itself has a function of that name or not, as the version goes
        operator = importlib.import_module("torch._higher_order_ops.associative_scan").associative_scan
    except (ImportError, AttributeError) as error:
        raise MissingPeerError(f"torch associative_scan: not in torch {torch.__version__}") from error

    def combine(left: tuple[Tensor, Tensor], right: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return left[0] * right[0], right[0] * left[1] + right[1]

    def scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, bias: Tensor) -> Tensor:
        step = F.softplus(delta + bias)
        decay = torch.exp(step.unsqueeze(-1) * A)
        driven = (step * u).unsqueeze(-1) * B.unsqueeze(2)
        # "pointwise", the faster mode, is for GPUs only
        states = operator(combine, (decay, driven), dim=1, combine_mode="generic")[1]
        return (states @ C.unsqueeze(-1)).squeeze(-1) + D * u

    u, weight = torch.ones(1, 3, 1, requires_grad=True), torch.ones(1)
    try:
        scan(u, u, weight.view(1, 1), u, u, weight, weight).sum().backward()
    except (RuntimeError, NotImplementedError) as error:
        raise MissingPeerError(
            f"torch associative_scan: does not differentiate in torch {torch.__version__}"
        ) from error
    return scan


@contextmanager
def _modules_in_place(stand_ins: dict[str, ModuleType]) -> Iterator[None]:
    """Puts modules into ``sys.modules``, and afterwards leaves there what was there before."""

    def take_out() -> dict[str, ModuleType]:
        names = [name for name in sys.modules if name in stand_ins or name.startswith("mamba_ssm.")]
        return {name: sys.modules.pop(name) for name in names}

    before = take_out()
    sys.modules.update(stand_ins)
    try:
        yield
    finally:
        take_out()
        sys.modules.update(before)
