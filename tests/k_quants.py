# SPDX-License-Identifier: MIT
# What the package gguf lacks for make_model.py: an encoder of Q4_K, Q5_K and Q6_K, plain rounding
# without a search for the best scales; which type stands in where rows are too short for those; and
# blocks of random bytes.
"""Weight types for test models."""

import numpy as np
from gguf import GGMLQuantizationType, quants
from gguf.constants import GGML_QUANT_SIZES

TYPES = ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K"]
FILE_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9, "Q4_K": 14,
              "Q5_K": 16, "Q6_K": 18, "BF16": 32}
# As llama.cpp does for rows that are no multiple of 256.
INSTEAD = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
# Where a block has its binary16 numbers.
HALVES = {"Q8_0": [0], "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q4_K": [0, 2],
          "Q5_K": [0, 2], "Q6_K": [208]}


def type_for(kind, n_col):
    """The type that rows of n_col elements get when kind is asked for."""
    return INSTEAD[kind] if kind in INSTEAD and n_col % 256 else kind


def ratio(a, b):
    """a / b, 0 where b is 0."""
    return np.divide(a, b, out=np.zeros(np.broadcast_shapes(a.shape, b.shape), np.float32),
                     where=b != 0)


def halves(x):
    """x as binary16, its bytes and its value."""
    h = x.astype(np.float16)
    return h.view(np.uint8), h.astype(np.float32)


def six_bits(scale, low):
    """The twelve bytes that hold eight scales and eight minima of six bits each."""
    return np.concatenate([scale[:, :4] | scale[:, 4:] >> 4 << 6, low[:, :4] | low[:, 4:] >> 4 << 6,
                           scale[:, 4:] & 15 | (low[:, 4:] & 15) << 4], axis=1)


def affine(x, top):
    """Head and values of Q4_K and Q5_K: x [n, 256] is about d * scale * value - dmin * low, in
    blocks of 32, values 0 to top."""
    x = x.reshape(-1, 8, 32)
    least = np.minimum(x.min(axis=2), 0)
    step = (x.max(axis=2) - least) / np.float32(top)
    d_bytes, d = halves(step.max(axis=1, keepdims=True) / 63)
    m_bytes, m = halves((-least).max(axis=1, keepdims=True) / 63)
    scale = np.rint(ratio(step, d)).clip(0, 63).astype(np.uint8)
    low = np.rint(ratio(-least, m)).clip(0, 63).astype(np.uint8)
    value = ratio(x + (m * low)[:, :, None], (d * scale)[:, :, None])
    return (np.concatenate([d_bytes, m_bytes, six_bits(scale, low)], axis=1),
            np.rint(value).clip(0, top).astype(np.uint8))


def nibbles(v):
    """Blocks 2i and 2i + 1 in the lower and upper half of the same bytes."""
    return (v[:, 0::2] & 15 | (v[:, 1::2] & 15) << 4).reshape(len(v), -1)


def encode_q4_k(x):
    head, v = affine(x, 15)
    return np.concatenate([head, nibbles(v)], axis=1)


def encode_q5_k(x):
    head, v = affine(x, 31)
    bits = np.arange(8, dtype=np.uint8)[None, :, None]
    high = np.bitwise_or.reduce(v >> 4 << bits, axis=1)
    return np.concatenate([head, high, nibbles(v)], axis=1)


def encode_q6_k(x):
    x = x.reshape(-1, 16, 16)
    step = np.abs(x).max(axis=2) / np.float32(31)
    d_bytes, d = halves(step.max(axis=1, keepdims=True) / 127)
    scale = np.rint(ratio(step, d)).clip(0, 127).astype(np.int8)
    v = np.rint(ratio(x, (d * scale)[:, :, None])).clip(-32, 31) + 32
    v = v.astype(np.uint8).reshape(-1, 2, 4, 32)  # half of the block, block of 32
    low = (v[:, :, :2] & 15 | (v[:, :, 2:] & 15) << 4).reshape(len(v), -1)
    bits = np.array([0, 2, 4, 6], dtype=np.uint8)[None, None, :, None]
    high = np.bitwise_or.reduce(v >> 4 << bits, axis=2).reshape(len(v), -1)
    return np.concatenate([low, high, scale.view(np.uint8), d_bytes], axis=1)


ENCODERS = {"Q4_K": encode_q4_k, "Q5_K": encode_q5_k, "Q6_K": encode_q6_k}


def quantize(rows, kind):
    """Rows of floats in that type."""
    if kind in ENCODERS:
        return ENCODERS[kind](rows.reshape(-1, 256)).reshape(len(rows), -1)
    return quants.quantize(rows, GGMLQuantizationType[kind])


def random_blocks(rng, kind, n_row, n_col):
    """Rows in which every byte is a draw; floats and halves are finite, of many sizes."""
    def draw(shape):
        x = np.ldexp(rng.uniform(-1, 1, shape), rng.integers(-20, 4, shape))
        return x.astype(np.float32)

    if kind not in HALVES:
        return quantize(draw((n_row, n_col)), kind)
    elems, size = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    raw = rng.integers(0, 256, (n_row * n_col // elems, size), dtype=np.uint8)
    for at in HALVES[kind]:
        raw[:, at:at + 2] = halves(draw((len(raw), 1)))[0]
    return raw.reshape(n_row, -1)
