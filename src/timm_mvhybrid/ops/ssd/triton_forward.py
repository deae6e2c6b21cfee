"""The forward kernel of the scan: a program owns one head (or a block of its channels) of one sequence.

It walks the chunks with the state in registers. The formulas are those of ``cpu``; δ_j multiplies the scores instead of
x, so that x enters every product as it was given.
"""

# a kernel's arguments have the types that it is launched with
# mypy: disable-error-code="no-untyped-def"

import triton
import triton.language as tl

from .triton_tile import decays, load_tile, pairwise_decays, product, tokens_at


@triton.jit
def forward_kernel(
    steps,
    x,
    B,
    C,
    D,
    y,
    last_state,
    states,
    length,
    heads,
    heads_per_group,
    headdim,
    d_state,
    x_batch,
    x_step,
    x_head,
    x_channel,
    B_batch,
    B_step,
    B_group,
    B_state,
    C_batch,
    C_step,
    C_group,
    C_state,
    SAVE_STATES: tl.constexpr,
    REVERSE: tl.constexpr,
    OPERAND: tl.constexpr,
    WIDE: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Computes y, the last state and the states between the chunks; one program for each block of a head's channels.

    Consecutive programs are the heads of a sequence, which read the same B and C.
    """
    program = tl.program_id(0)
    blocks = tl.cdiv(headdim, BLOCK_P)
    row = (program // blocks).to(tl.int64)
    batch = row // heads
    head = row % heads
    group = head // heads_per_group
    boundary_size = (tl.num_programs(0) // blocks).to(tl.int64) * headdim * d_state

    order = tl.arange(0, CHUNK)
    channels = (program % blocks) * BLOCK_P + tl.arange(0, BLOCK_P)
    columns = tl.arange(0, BLOCK_N)
    in_state = (channels[:, None] < headdim) & (columns[None, :] < d_state)
    state_offsets = row * headdim * d_state + channels[:, None] * d_state + columns[None, :]
    steps += row * tl.cdiv(length, CHUNK) * 3 * CHUNK
    x += batch * x_batch + head * x_head
    B += batch * B_batch + group * B_group
    C += batch * C_batch + group * C_group
    y += (batch * length * heads + head) * headdim

    h = tl.zeros((BLOCK_P, BLOCK_N), WIDE)
    for start in range(0, length, CHUNK):
        times = start + order
        tokens, valid = tokens_at(times, length, REVERSE), times < length
        values = load_tile(x, tokens, channels, valid, headdim, x_step, x_channel, OPERAND)
        inputs = load_tile(B, tokens, columns, valid, d_state, B_step, B_state, OPERAND)
        outputs = load_tile(C, tokens, columns, valid, d_state, C_step, C_state, OPERAND)
        step = tl.load(steps + order)
        from_start, to_end, over_chunk = decays(steps, CHUNK)

        mixing = product(outputs, tl.trans(inputs)) * pairwise_decays(steps, CHUNK) * step[None, :]
        result = product(outputs, tl.trans(h)) * from_start[:, None] + product(mixing, values)
        if D is not None:
            result += values.to(WIDE) * tl.load(D + head).to(WIDE)
        y_pointers = y + tokens[:, None] * (heads * headdim) + channels[None, :]
        in_y = valid[:, None] & (channels[None, :] < headdim)
        tl.store(y_pointers, result.to(y.dtype.element_ty), mask=in_y)

        h = h * over_chunk + product(tl.trans(values), inputs.to(WIDE) * (to_end * step)[:, None])
        if SAVE_STATES:
            if start + CHUNK < length:
                boundary = states + (start // CHUNK) * boundary_size
                tl.store(boundary + state_offsets, h, mask=in_state)
        steps += 3 * CHUNK
    tl.store(last_state + state_offsets, h, mask=in_state)
