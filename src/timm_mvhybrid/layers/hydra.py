"""The Hydra mixer: a quasiseparable matrix over the tokens, as two shifted scans and a diagonal."""

from typing import Any

import torch
from torch import Tensor, nn

from ..ops.depthwise import depthwise_conv_silu
from ..ops.gated_norm import gated_norm
from ..ops.precision import at_least_float32
from ..ops.quasiseparable import quasiseparable
from ..runtime.errors import ParameterError
from .float32 import KeepsFloat32, float32_unless_wider
from .scan_tokens import ScanTokens
from .step_size import initial_step_bias


class HydraMixer(KeepsFloat32):
    """Mixes tokens by Mamba-2's scan in both directions, each shifted by one step, plus a learned diagonal.

    ``[z | xBC | dt] = in_proj(tokens)``; xBC passes a depthwise convolution and SiLU. Position t receives the forward
    scan's output at t − 1, the backward scan's at t + 1, and x_t · (fc_D(x_t) + D). RMS-normalised, then gated by
    silu(z). Decay rates and step biases are shared by the directions. Source: Hwang et al., "Hydra: Bidirectional
    State Space Models Through Generalized Matrix Mixers" (arXiv 2407.09941), section 4.

    Args:
        d_model: Width of the tokens.
        d_state: States a channel.
        d_conv: Taps of the convolution, odd.
        expand: Inner width in units of ``d_model``.
        headdim: Channels a head; divides the inner width.
        ngroups: Groups of heads that share B and C; divides the number of heads.
        device: Where the parameters are made.
        dtype: Their dtype; ``A_log``, ``D`` and ``dt_bias`` are at least float32 and stay so when the module is cast.

    Raises:
        ParameterError: ``headdim`` does not divide the inner width, ``ngroups`` not the heads, or ``d_conv`` is even.
    """

    float32_parameters = ("A_log", "D", "dt_bias")

    def __init__(
        self,
        d_model: int,
        d_state: int = 64,
        d_conv: int = 7,
        expand: int = 2,
        headdim: int = 64,
        ngroups: int = 1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        self.d_model, self.d_state, self.d_conv = d_model, d_state, d_conv
        self.d_inner = expand * d_model
        self.headdim, self.ngroups = headdim, ngroups
        if self.d_inner % headdim:
            raise ParameterError(
                f"`headdim` is {headdim}; it must divide the inner width expand * d_model = {self.d_inner}"
            )
        self.num_heads = self.d_inner // headdim
        if self.num_heads % ngroups:
            raise ParameterError(
                f"`ngroups` is {ngroups}; it must divide the number of heads, {self.num_heads}"
            )
        if d_conv % 2 == 0:
            raise ParameterError(f"`d_conv` is {d_conv}; it must be odd, so that the convolution is centred")
        d_xbc = self.d_inner + 4 * ngroups * d_state
        self.in_proj = nn.Linear(d_model, self.d_inner + d_xbc + 2 * self.num_heads, bias=False, **dd)
        self.conv1d = nn.Conv1d(d_xbc, d_xbc, d_conv, groups=d_xbc, **dd)
        state_dd: dict[str, Any] = {"device": device, "dtype": float32_unless_wider(dtype)}
        self.dt_bias = nn.Parameter(torch.empty(self.num_heads, **state_dd))
        self.A_log = nn.Parameter(torch.empty(self.num_heads, **state_dd))
        self.D = nn.Parameter(torch.empty(self.num_heads, **state_dd))
        self.fc_D = nn.Linear(self.d_inner, self.num_heads, bias=False, **dd)
        self.norm = nn.RMSNorm(self.d_inner, eps=1e-5, **dd)
        self.out_proj = nn.Linear(self.d_inner, d_model, bias=False, **dd)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialises the scan as Hydra publishes it; the projections initialise themselves."""
        self.dt_bias.copy_(initial_step_bias(self.dt_bias.shape, self.dt_bias.dtype, self.dt_bias.device))
        self.A_log.zero_()
        self.D.fill_(1.0)

    def forward(self, x: Tensor) -> Tensor:
        """Mixes tokens (batch, length, d_model)."""
        tokens, z = self.scan_inputs(x)
        return self.scan(tokens, z)

    def scan_inputs(self, x: Tensor) -> tuple[ScanTokens, Tensor]:
        """Computes what both scans read of tokens (batch, length, d_model), and z, (batch, length, d_inner)."""
        d_matrix = self.ngroups * self.d_state
        z, xBC, dt = self.in_proj(x).split(
            [self.d_inner, self.d_inner + 4 * d_matrix, 2 * self.num_heads], dim=-1
        )
        xBC = depthwise_conv_silu(xBC, self.conv1d.weight, self.conv1d.bias, self.d_conv // 2)
        x, matrices = xBC.split([self.d_inner, 4 * d_matrix], dim=-1)
        x = x.unflatten(-1, (self.num_heads, self.headdim))
        B, C = matrices.unflatten(-1, (2, 2, self.ngroups, self.d_state)).unbind(3)
        return ScanTokens(x, dt.unflatten(-1, (2, self.num_heads)), B, C), z

    def scan(self, tokens: ScanTokens, z: Tensor) -> Tensor:
        """Mixes tokens by what ``scan_inputs`` computed of them."""
        x, dt, B, C = tokens
        rates = -torch.exp(at_least_float32(self.A_log))
        y = quasiseparable(x, dt, rates, B, C, self.dt_bias, self.diagonal(x))
        return self.join(y, z)

    def diagonal(self, x: Tensor) -> Tensor:
        """Computes the matrix's diagonal, (batch, length, heads), from x, (batch, length, heads, headdim)."""
        return self.fc_D(x.flatten(2)) + self.D.to(x.dtype)

    def join(self, y: Tensor, z: Tensor) -> Tensor:
        """Normalises, gates and projects the matrix's product, (batch, length, heads, headdim), which it may overwrite."""
        eps = self.norm.eps
        assert eps is not None
        # nothing else reads y, so the result may overwrite it
        y = gated_norm(y.flatten(2), z, self.norm.weight, eps, overwrite=True)
        return self.out_proj(y)
