"""The MambaVision mixer: a selective scan beside a convolved branch, both non-causal in their convolutions."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from ..ops.depthwise import depthwise_conv_silu
from ..runtime.errors import ParameterError
from .eigenvalues import frequencies, initialize_eigenvalues, num_poles, scan
from .float32 import KeepsFloat32, float32_unless_wider
from .scan_tokens import ScanTokens
from .step_size import initial_step_bias


class MambaVisionMixer(KeepsFloat32):
    """Mixes tokens in raster order by a scan, whose eigenvalues are negative and real unless asked for otherwise.

    ``[x | z] = in_proj(tokens)``; both halves pass a depthwise convolution and SiLU; x is scanned with the step
    sizes, B and C that ``x_proj`` reads from it; ``out_proj`` joins the scan's output and z.

    The bias of ``dt_proj`` acts twice, in the projection and again as the scan's bias: published checkpoints were
    trained that way. Source: Hatamizadeh and Kautz, "MambaVision" (arXiv 2407.08083), figure 3, and its use in
    MV_Hybrid (arXiv 2508.00383).

    Args:
        d_model: Width of the tokens.
        d_state: States a channel.
        d_conv: Taps of the convolutions.
        expand: Width of x and z together, in units of ``d_model``.
        eigenvalues: "real", as published, or "complex": ``d_state`` / 2 conjugate pairs −exp(A_log) ± i A_imag, which have
            as many parameters, from S4D-Lin's start.
        device: Where the parameters are made.
        dtype: Their dtype; ``A_log`` and ``D`` are at least float32 and stay so when the module is cast.

    Raises:
        ParameterError: ``expand * d_model`` is odd, or ``eigenvalues`` does not fit.
    """

    float32_parameters = ("A_log", "A_imag", "D")

    def __init__(
        self,
        d_model: int,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
        eigenvalues: str = "real",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if expand * d_model % 2:
            raise ParameterError(
                f"expand * d_model is {expand} * {d_model}; it must be even, because x and z take half each"
            )
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        self.d_model, self.d_state, self.d_conv = d_model, d_state, d_conv
        self.d_inner = expand * d_model // 2
        self.dt_rank = math.ceil(d_model / 16)
        self.in_proj = nn.Linear(d_model, 2 * self.d_inner, bias=False, **dd)
        self.conv1d_x = nn.Conv1d(self.d_inner, self.d_inner, d_conv, groups=self.d_inner, bias=False, **dd)
        self.conv1d_z = nn.Conv1d(self.d_inner, self.d_inner, d_conv, groups=self.d_inner, bias=False, **dd)
        self.x_proj = nn.Linear(self.d_inner, self.dt_rank + 2 * d_state, bias=False, **dd)
        self.dt_proj = nn.Linear(self.dt_rank, self.d_inner, **dd)
        state_dd: dict[str, Any] = {"device": device, "dtype": float32_unless_wider(dtype)}
        self.A_log = nn.Parameter(torch.empty(self.d_inner, num_poles(eigenvalues, d_state), **state_dd))
        self.A_imag = frequencies(self.A_log, eigenvalues)
        self.D = nn.Parameter(torch.empty(self.d_inner, **state_dd))
        self.out_proj = nn.Linear(2 * self.d_inner, d_model, bias=False, **dd)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialises the scan by Mamba's textbook rules; the projections initialise themselves."""
        initialize_eigenvalues(self.A_log, self.A_imag)
        self.D.fill_(1.0)
        nn.init.uniform_(self.dt_proj.weight, -(self.dt_rank**-0.5), self.dt_rank**-0.5)
        bias = self.dt_proj.bias
        bias.copy_(initial_step_bias(bias.shape, bias.dtype, bias.device))

    def forward(self, x: Tensor) -> Tensor:
        """Mixes tokens (batch, length, d_model)."""
        tokens, z = self.scan_inputs(x)
        return self.scan(tokens, z)

    def scan_inputs(self, x: Tensor) -> tuple[ScanTokens, Tensor]:
        """Computes what the scan reads of tokens (batch, length, d_model), and z, (batch, length, d_inner)."""
        # "same" padding of an even kernel: the odd zero goes to the right
        kernels = torch.cat([self.conv1d_x.weight, self.conv1d_z.weight])
        xz = depthwise_conv_silu(self.in_proj(x), kernels, None, (self.d_conv - 1) // 2)
        x, z = xz.chunk(2, dim=-1)
        dt, B, C = self.x_proj(x).split([self.dt_rank, self.d_state, self.d_state], dim=-1)
        return ScanTokens(x, self.dt_proj(dt), B.unsqueeze(2), C.unsqueeze(2)), z

    def scan(self, tokens: ScanTokens, z: Tensor) -> Tensor:
        """Mixes tokens by what ``scan_inputs`` computed of them."""
        y = scan(tokens, self.A_log, self.A_imag, self.D, self.dt_proj.bias)
        return self.out_proj(torch.cat([y, z], dim=-1))
