"""The Fourier transform over EinFFT's four blocks of channels: butterflies before and after that of the tokens.

Layouts are those of ``cpu.py``: tokens (rows, length, d_model), spectra (rows, 2 · half, d_model), and rows of the
maps, (4, rows · half, d_model / 2).
"""

import torch
from torch import Tensor


def butterfly(x: Tensor, out: Tensor) -> Tensor:
    """Sums and differences of the blocks: even + odd, b0 − b2, even − odd, b1 − b3.

    Blocks 0 and 2 of the transform over blocks are then real before the token transform; 1 and 3 are p − iq, p + iq.
    """
    b0, b1, b2, b3 = x.chunk(4, dim=-1)
    total, p, difference, q = out.chunk(4, dim=-1)
    even, odd = b0 + b2, b1 + b3
    torch.add(even, odd, out=total)
    torch.sub(b0, b2, out=p)
    torch.sub(even, odd, out=difference)
    torch.sub(b1, b3, out=q)
    return out


def butterfly_backward(grad: Tensor, out: Tensor) -> None:
    """Applies the transpose of :func:`butterfly`."""
    total, p, difference, q = grad.chunk(4, dim=-1)
    b0, b1, b2, b3 = out.chunk(4, dim=-1)
    even, odd = total + difference, total - difference
    torch.add(even, p, out=b0)
    torch.sub(even, p, out=b2)
    torch.add(odd, q, out=b1)
    torch.sub(odd, q, out=b3)


def fold_blocks(spectrum: Tensor, out: Tensor) -> Tensor:
    """Completes the transform over the blocks: spectra → rows of the maps."""
    r0, rp, r2, rq, i0, ip, i2, iq = _channels_of(spectrum)
    (real_0, imaginary_0), (real_1, imaginary_1), (real_2, imaginary_2), (real_3, imaginary_3) = _parts(
        out, len(spectrum)
    )
    real_0.copy_(r0)
    imaginary_0.copy_(i0)
    real_2.copy_(r2)
    imaginary_2.copy_(i2)
    torch.add(rp, iq, out=real_1)
    torch.sub(ip, rq, out=imaginary_1)
    torch.sub(rp, iq, out=real_3)
    torch.add(ip, rq, out=imaginary_3)
    return out


def fold_blocks_backward(grad: Tensor, out: Tensor) -> None:
    """Applies the transpose of :func:`fold_blocks`."""
    (real_0, imaginary_0), (real_1, imaginary_1), (real_2, imaginary_2), (real_3, imaginary_3) = _parts(
        grad, len(out)
    )
    r0, rp, r2, rq, i0, ip, i2, iq = _channels_of(out)
    r0.copy_(real_0)
    i0.copy_(imaginary_0)
    r2.copy_(real_2)
    i2.copy_(imaginary_2)
    torch.add(real_1, real_3, out=rp)
    torch.sub(real_1, real_3, out=iq)
    torch.add(imaginary_1, imaginary_3, out=ip)
    torch.sub(imaginary_3, imaginary_1, out=rq)


def unfold_blocks(real: Tensor, imaginary: Tensor, scratch: Tensor, out: Tensor) -> Tensor:
    """Inverts the transform over the blocks: rows of the maps → spectra of the tokens' channels.

    Of i (Z₁ − Z₃) the real part is i₃ − i₁ and the imaginary part r₁ − r₃. ``scratch``, of the shape of the rows, is
    overwritten.
    """
    count = len(out)
    r0, r1, r2, r3 = real.unflatten(1, (count, -1)).unbind(0)
    i0, i1, i2, i3 = imaginary.unflatten(1, (count, -1)).unbind(0)
    (total, difference), (odd, turned), _, _ = _parts(scratch, count)
    halves = _channels_of(out)
    for (c0, c1, c2, c3), (z0, z1, z2, z3), (plus, minus) in (
        (halves[:4], (r0, r1, r2, r3), (i3, i1)),
        (halves[4:], (i0, i1, i2, i3), (r1, r3)),
    ):
        torch.add(z0, z2, out=total)
        torch.sub(z0, z2, out=difference)
        torch.add(z1, z3, out=odd)
        torch.sub(plus, minus, out=turned)
        torch.add(total, odd, out=c0)
        torch.add(difference, turned, out=c1)
        torch.sub(total, odd, out=c2)
        torch.sub(difference, turned, out=c3)
    return out


def unfold_blocks_backward(grad: Tensor, out: Tensor) -> Tensor:
    """Applies the transpose of :func:`unfold_blocks`; the rows hold real and imaginary parts."""
    c0, c1, c2, c3, e0, e1, e2, e3 = _channels_of(grad)
    (r0, i0), (r1, i1), (r2, i2), (r3, i3) = _parts(out, len(grad))
    even, odd = c0 + c2, c1 + c3
    torch.add(even, odd, out=r0)
    torch.sub(even, odd, out=r2)
    torch.add(e0, e2, out=even)
    torch.add(e1, e3, out=odd)
    torch.add(even, odd, out=i0)
    torch.sub(even, odd, out=i2)
    torch.sub(c0, c2, out=even)
    torch.sub(e1, e3, out=odd)
    torch.add(even, odd, out=r1)
    torch.sub(even, odd, out=r3)
    torch.sub(e0, e2, out=even)
    torch.sub(c1, c3, out=odd)
    torch.sub(even, odd, out=i1)
    torch.add(even, odd, out=i3)
    return out


def _channels_of(spectrum: Tensor) -> tuple[Tensor, ...]:
    """Views the four blocks of channels of the real parts, then of the imaginary parts, (rows, half, width) each."""
    real, imaginary = spectrum.chunk(2, dim=1)
    return (*real.chunk(4, dim=-1), *imaginary.chunk(4, dim=-1))


def _parts(blocks: Tensor, count: int) -> list[tuple[Tensor, ...]]:
    """Views (real, imaginary) of each of the four blocks, (rows, half, width) each."""
    return [block.chunk(2, dim=-1) for block in blocks.unflatten(1, (count, -1)).unbind(0)]
