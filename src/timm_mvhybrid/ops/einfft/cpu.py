"""EinFFT in place, part by part of the batch, so that its many light steps stay in the cache; with its gradient.

Layouts: spectra are (rows, 2 · half, d_model), real above imaginary parts of the frequencies 0 … length // 2 (half of
them); rows of the maps are (4, rows · half, d_model / 2), one matrix a block, real before imaginary channels.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ..autograd import is_needed
from ..spectral import forward_basis, inverse_basis
from ..workspace import cut_batch
from .blocks import (
    butterfly,
    butterfly_backward,
    fold_blocks,
    fold_blocks_backward,
    unfold_blocks,
    unfold_blocks_backward,
)

PART_ELEMENTS = 1 << 20
"""Elements of one work buffer; a larger batch is worked off in parts of this size."""


class _Transform(NamedTuple):
    """A Fourier transform between tokens and half spectra, as two matrices of half its size.

    The cosine of token n is that of token length − n, and the sine its negative, so that cosines act on the sums of
    such pairs and sines on their differences.
    """

    cosines: Tensor  # between the first half of the tokens and the real parts, (half, half)
    sines: Tensor  # between the paired tokens, 1 … (length − 1) // 2, and the imaginary parts

    def transposed(self) -> "_Transform":
        """Returns the transform of gradients."""
        return _Transform(self.cosines.mT, self.sines.mT)


class _Workspace:
    """Buffers for a part of up to ``rows`` images, cut to the rows at hand."""

    def __init__(self, x: Tensor, rows: int) -> None:
        self.x, self.rows = x, rows
        self.half = x.shape[1] // 2 + 1
        self._room: dict[str, Tensor] = {}

    def cut(self, rows: slice) -> slice:
        """Returns where the rows of the maps are among those of the whole batch."""
        return slice(rows.start * self.half, rows.stop * self.half)

    def _take(self, name: str, rows: int, a_row: int) -> Tensor:
        if name not in self._room:
            self._room[name] = self.x.new_empty(self.rows * a_row)
        return self._room[name][: rows * a_row]

    def tokens(self, name: str, rows: int) -> Tensor:
        """(rows, length, d_model)."""
        return self._take(name, rows, self.x.shape[1:].numel()).view(rows, *self.x.shape[1:])

    def spectrum(self, name: str, rows: int) -> Tensor:
        """(rows, 2 · half, d_model)."""
        dim = self.x.shape[2]
        return self._take(name, rows, 2 * self.half * dim).view(rows, 2 * self.half, dim)

    def blocks(self, name: str, rows: int) -> Tensor:
        """(4, rows · half, d_model / 2)."""
        dim = self.x.shape[2]
        return self._take(name, rows, 2 * self.half * dim).view(4, rows * self.half, dim // 2)


def saved_shape(x: Tensor, save: bool) -> list[int]:
    """Shape of what forward keeps of one set of rows: (4, batch · half, d_model / 2), or no rows without ``save``."""
    batch, length, dim = x.shape
    return [4, batch * (length // 2 + 1) if save else 0, dim // 2]


def forward(
    x: Tensor,
    weight_1: Tensor,
    bias_1: Tensor,
    weight_2: Tensor,
    bias_2: Tensor,
    threshold: float,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Computes EinFFT.

    Arguments as for :func:`.portable.einfft_portable`; ``save`` keeps what backward needs.

    Returns:
        The result, (batch, length, d_model); the rows of the first map and what comes after the ReLU for positive and
        for negative frequencies, (3, *saved_shape); and where the shrinkage lets something through, bool,
        (2, *saved_shape).
    """
    length = x.shape[1]
    analysis, synthesis = _analysis(length, x), _synthesis(length, x)
    result = x.new_empty(x.shape)
    saved = x.new_empty([3, *saved_shape(x, save)])
    passed = x.new_empty([2, *saved_shape(x, save)], dtype=torch.bool)
    maps_1, maps_2 = _real_maps(weight_1, True), _real_maps(weight_2, False)
    bias_1, bias_2 = _real_biases(bias_1), _real_biases(bias_2)
    parts, most_rows = cut_batch(x, PART_ELEMENTS)
    space = _Workspace(x, most_rows)
    for rows in parts:
        count, cut = rows.stop - rows.start, space.cut(rows)
        spectrum = space.spectrum("spectrum", count)
        _to_spectrum(butterfly(x[rows], space.tokens("tokens", count)), analysis, spectrum)
        folded = fold_blocks(spectrum, saved[0][:, cut] if save else space.blocks("rows", count))
        mapped = []
        for sign, name in enumerate(("positive", "negative")):
            hidden = saved[1 + sign][:, cut] if save else space.blocks("hidden", count)
            torch.baddbmm(bias_1[sign].unsqueeze(1), folded, maps_1[sign], out=hidden).relu_()
            values = space.blocks(name, count)
            torch.baddbmm(bias_2[sign].unsqueeze(1), hidden, maps_2[sign], out=values)
            torch.ops.aten.softshrink.out(values, threshold, out=values)
            if save:
                torch.ne(values, 0, out=passed[sign][:, cut])
            mapped.append(values)
        _to_tokens(_joined(mapped, spectrum), synthesis, result[rows])
    return result, saved, passed


def tangents(moves: Tensor, saved: Tensor, passed: Tensor, weight_1: Tensor, weight_2: Tensor) -> Tensor:
    """Differentiates :func:`forward` along directions.

    Args:
        moves: Directions of x, (directions, batch, length, d_model).
        saved: What forward kept, as is ``passed``.
        passed: Where the shrinkage lets something through.
        weight_1: First maps.
        weight_2: Second maps.

    Returns:
        (directions, batch, length, d_model).
    """
    batch, length = moves.shape[1:3]
    analysis, synthesis = _analysis(length, moves), _synthesis(length, moves)
    maps_1, maps_2 = _real_maps(weight_1, True), _real_maps(weight_2, False)
    masks = [
        (kept.unsqueeze(1).to(moves.dtype), let_through.unsqueeze(1).to(moves.dtype))
        for kept, let_through in zip(saved[1:] > 0, passed, strict=True)
    ]
    result = moves.new_empty(moves.shape)
    parts, most = cut_batch(moves, PART_ELEMENTS)
    space = _Workspace(moves[0], most * batch)
    for directions in parts:
        along = directions.stop - directions.start
        count = along * batch
        spectrum = space.spectrum("spectrum", count)
        tokens = butterfly(moves[directions].flatten(0, 1), space.tokens("tokens", count))
        folded = fold_blocks(_to_spectrum(tokens, analysis, spectrum), space.blocks("rows", count))
        mapped = []
        for sign, name in enumerate(("positive", "negative")):
            hidden = torch.bmm(folded, maps_1[sign], out=space.blocks("hidden", count))
            hidden.unflatten(1, (along, -1)).mul_(masks[sign][0])
            values = torch.bmm(hidden, maps_2[sign], out=space.blocks(name, count))
            values.unflatten(1, (along, -1)).mul_(masks[sign][1])
            mapped.append(values)
        _to_tokens(_joined(mapped, spectrum), synthesis, result[directions].flatten(0, 1))
    return result


def _joined(mapped: list[Tensor], spectrum: Tensor) -> Tensor:
    """Adds up what positive and negative frequencies give, in place, and turns it into a spectrum of the tokens."""
    positive, negative = mapped
    real, imaginary = positive.chunk(2, dim=-1)
    real_negative, imaginary_negative = negative.chunk(2, dim=-1)
    # only the conjugate-symmetric half of the spectrum has a real inverse
    real.add_(real_negative)
    imaginary.sub_(imaginary_negative)
    return unfold_blocks(real, imaginary, negative, spectrum)


def backward(
    grad: Tensor,
    saved: Tensor,
    passed: Tensor,
    x: Tensor,
    weight_1: Tensor,
    bias_1: Tensor,
    weight_2: Tensor,
    bias_2: Tensor,
    needed: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Differentiates :func:`forward`.

    ``saved`` and ``passed`` are what forward kept; of x the shape alone is of interest, and no gradient depends on the
    biases. Returns the gradients of x, weight_1, bias_1, weight_2 and bias_2, of which those of maps that are not
    ``needed`` are 0.
    """
    needs_maps_1, needs_maps_2 = is_needed(needed, 1), is_needed(needed, 3)
    length = x.shape[1]
    analysis, synthesis = _analysis(length, x).transposed(), _synthesis(length, x).transposed()
    grad_x = x.new_empty(x.shape)
    maps_1, maps_2 = _real_maps(weight_1, True), _real_maps(weight_2, False)
    grad_maps_1, grad_maps_2 = torch.zeros_like(maps_1), torch.zeros_like(maps_2)
    grad_bias_1, grad_bias_2 = (maps.new_zeros(maps.shape[:-1]) for maps in (maps_1, maps_2))
    parts, most_rows = cut_batch(x, PART_ELEMENTS)
    space = _Workspace(x, most_rows)
    for rows in parts:
        count, cut = rows.stop - rows.start, space.cut(rows)
        spectrum = _to_spectrum(grad[rows], synthesis, space.spectrum("spectrum", count))
        grad_blocks = unfold_blocks_backward(spectrum, space.blocks("blocks", count))
        grad_rows = space.blocks("rows", count).zero_()
        for sign in range(2):
            if sign == 1:
                # the imaginary parts of the negative frequencies entered with a minus
                grad_blocks.chunk(2, dim=-1)[1].neg_()
            folded, hidden = saved[0][:, cut], saved[1 + sign][:, cut]
            grad_mapped = torch.mul(grad_blocks, passed[sign][:, cut], out=space.blocks("mapped", count))
            grad_bias_2[sign] += grad_mapped.sum(1)
            if needs_maps_2:
                grad_maps_2[sign].baddbmm_(hidden.mT, grad_mapped)
            grad_hidden = torch.bmm(grad_mapped, maps_2[sign].mT, out=space.blocks("hidden", count))
            torch.ops.aten.threshold_backward.grad_input(grad_hidden, hidden, 0.0, grad_input=grad_hidden)
            grad_bias_1[sign] += grad_hidden.sum(1)
            if needs_maps_1:
                grad_maps_1[sign].baddbmm_(folded.mT, grad_hidden)
            grad_rows.baddbmm_(grad_hidden, maps_1[sign].mT)
        fold_blocks_backward(grad_rows, spectrum)
        grad_tokens = space.tokens("tokens", count)
        _to_tokens(spectrum, analysis, grad_tokens)
        butterfly_backward(grad_tokens, grad_x[rows])
    return (
        grad_x,
        _real_maps_backward(grad_maps_1, True),
        _real_biases_backward(grad_bias_1),
        _real_maps_backward(grad_maps_2, False),
        _real_biases_backward(grad_bias_2),
    )


def _real_maps(weight: Tensor, conjugate: bool) -> Tensor:
    """Writes complex maps as real ones, as the function of this name in ``portable`` does, with fewer copies."""
    _, blocks, width, _ = weight.shape
    maps = weight.new_empty(2, blocks, 2 * width, 2 * width)
    for signed, source in zip(maps, (weight, _mirrored(weight)), strict=True):
        real, imaginary = source
        signed[:, :width, :width] = real
        signed[:, :width, width:] = imaginary
        negate = conjugate and source is not weight
        torch.mul(imaginary, 1.0 if negate else -1.0, out=signed[:, width:, :width])
        torch.mul(real, -1.0 if negate else 1.0, out=signed[:, width:, width:])
    return maps


def _real_maps_backward(grad: Tensor, conjugate: bool) -> Tensor:
    """Applies the transpose of :func:`_real_maps`."""
    width = grad.shape[-1] // 2
    (from_real, from_imaginary), total = grad.split(width, dim=-2), []
    for sign in range(2):
        real, imaginary = from_real[sign].split(width, dim=-1)
        under_real, under_imaginary = from_imaginary[sign].split(width, dim=-1)
        factor = -1.0 if conjugate and sign == 1 else 1.0
        total.append(torch.stack([real + factor * under_imaginary, imaginary - factor * under_real]))
    return total[0].add_(_mirrored(total[1]))


def _real_biases(bias: Tensor) -> Tensor:
    """Writes complex biases, (2, 4, width), as real ones for both signs of the frequency, (2, 4, 2 · width)."""
    return torch.cat([torch.stack([part, _mirrored(part[None])[0]]) for part in bias], dim=-1)


def _real_biases_backward(grad: Tensor) -> Tensor:
    """Applies the transpose of :func:`_real_biases`."""
    parts = [torch.stack(signed.chunk(2, dim=-1)) for signed in grad]
    return parts[0] + _mirrored(parts[1])


def _mirrored(blocks: Tensor) -> Tensor:
    """Reorders the blocks, on the second axis, from 0, 1, 2, 3 to 0, −1, −2, −3 modulo four."""
    return torch.cat([blocks[:, :1], blocks[:, 1:].flip(1)], dim=1)


def _analysis(length: int, like: Tensor) -> _Transform:
    """Makes the transform of tokens into spectra, with half of the transform over four blocks' scale."""
    half = length // 2 + 1
    basis = 0.5 * forward_basis(length, like)
    return _Transform(basis[:half, :half], basis[half:, 1 : (length + 1) // 2])


def _synthesis(length: int, like: Tensor) -> _Transform:
    """Makes the inverse; another half, because the spectrum given to it is twice its conjugate-symmetric part."""
    half = length // 2 + 1
    basis = 0.25 * inverse_basis(length, like)
    return _Transform(basis[:half, :half], basis[1 : (length + 1) // 2, half:])


def _to_spectrum(tokens: Tensor, transform: _Transform, out: Tensor) -> Tensor:
    """Transforms tokens (rows, length, d_model) into spectra (rows, 2 · half, d_model)."""
    half, pairs = transform.cosines.shape[0], transform.sines.shape[1]
    mirrored = tokens[:, half:].flip(1)
    sums = tokens[:, :half].clone()
    sums[:, 1 : pairs + 1].add_(mirrored)
    differences = torch.sub(tokens[:, 1 : pairs + 1], mirrored, out=mirrored)
    rows = len(tokens)
    torch.bmm(transform.cosines.expand(rows, -1, -1), sums, out=out[:, :half])
    torch.bmm(transform.sines.expand(rows, -1, -1), differences, out=out[:, half:])
    return out


def _to_tokens(spectrum: Tensor, transform: _Transform, out: Tensor) -> None:
    """Transforms spectra (rows, 2 · half, d_model) into tokens (rows, length, d_model)."""
    half, pairs = transform.cosines.shape[0], transform.sines.shape[0]
    rows = len(spectrum)
    head = torch.bmm(transform.cosines.expand(rows, -1, -1), spectrum[:, :half], out=out[:, :half])
    odd = torch.bmm(transform.sines.expand(rows, -1, -1), spectrum[:, half:])
    paired = head[:, 1 : pairs + 1]
    out[:, half:] = torch.sub(paired, odd).flip(1)
    paired.add_(odd)
