#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
# Writes model files for the tests: small ones with random weights, and real ones in another weight
# type. Each tensor's numbers depend on the seed and its name alone, so that two files that differ
# in type, or in whether the head is tied, hold the same weights. Needs the packages gguf and numpy.
"""Make GGUF model files for tests."""

import argparse
import itertools
import os
import string
import sys
import zlib

import numpy as np
from gguf import GGUF_DEFAULT_ALIGNMENT, GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter
from gguf import quants
from gguf.constants import GGML_QUANT_SIZES, Keys

from k_quants import FILE_TYPES, TYPES, quantize, random_blocks, type_for

CHUNK = 1 << 22  # elements that are held as floats at a time
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
NORMAL, CONTROL = 1, 3
# Merges worth having first; every part is a byte or the result of an earlier line.
FIRST_MERGES = """Ġ t|h e|i n|r e|o n|Ġt he|e r|a t|Ġ a|e n|o r|Ġ s|Ġ o|Ġ w|a n|e s|i t|i s|Ġ c|Ġ f|o u
in g|Ġ b|e d|Ġ p|Ġo f|a l|Ġ m|a r|Ġa n|Ġan d|Ġt o|Ġ in|Ġ d|i c|Ġ h|l l|Ġ l|o m|v e|r o|i on|l e|s t
Ġ on|Ġ is|Ġ it|Ġw as|Ġ th|Ġth at|a s|Ġ re|e t|Ġ n|i l|e l|Ġb e|Ċ Ċ"""


class Problem(Exception):
    """What the user is told in one sentence."""


# ---------------------------------------------------------------- tokenizer


def byte_alphabet():
    """The printable character that stands for each byte in a byte-level vocabulary: itself where it
    is a visible Latin-1 character, else the next one from U+0100 on."""
    shown = [b for r in ((0x21, 0x7F), (0xA1, 0xAD), (0xAE, 0x100)) for b in range(*r)]
    hidden = [b for b in range(256) if b not in shown]
    return {**{b: chr(b) for b in shown}, **{b: chr(256 + i) for i, b in enumerate(hidden)}}


def all_merges():
    """Pairs to merge, without end in practice: the list above, then ever longer runs of letters."""
    for line in FIRST_MERGES.splitlines():
        for pair in line.split("|"):
            yield tuple(pair.split(" "))
    for length in itertools.count(1):
        for run in itertools.product(string.ascii_lowercase, repeat=length):
            for letter in string.ascii_lowercase:
                yield "".join(run), letter


def make_vocab(n_vocab):
    """Tokens, their types and merges."""
    tokens = SPECIAL + [c for _, c in sorted(byte_alphabet().items())]
    if n_vocab < len(tokens):
        raise Problem(f"--vocab {n_vocab} is too small; 256 bytes and {len(SPECIAL)} special tokens"
                      f" need {len(tokens)}.")
    known, merges = set(tokens), []
    for a, b in all_merges():
        if len(tokens) == n_vocab:
            break
        if a in known and b in known and a + b not in known:
            known.add(a + b)
            tokens.append(a + b)
            merges.append(f"{a} {b}")
    return tokens, [CONTROL] * len(SPECIAL) + [NORMAL] * (n_vocab - len(SPECIAL)), merges


def add_vocab(writer, n_vocab):
    tokens, types, merges = make_vocab(n_vocab)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(merges or ["h e"])
    writer.add_bos_token_id(SPECIAL.index("<|im_start|>"))
    writer.add_eos_token_id(SPECIAL.index("<|im_end|>"))
    writer.add_unk_token_id(0)
    writer.add_add_bos_token(False)


# ---------------------------------------------------------------- tensors


def check_row(name, n_col, kind):
    block = GGML_QUANT_SIZES[GGMLQuantizationType[kind]][0]
    if n_col % block:
        raise Problem(f"Tensor {name}: rows of {n_col} elements can't be held as {kind}, which has"
                      f" blocks of {block}; choose sizes that are multiples of {block}.")


def packed_shape(shape, kind):
    """Shape of the bytes that hold a tensor."""
    elems, size = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    return (*shape[:-1], shape[-1] // elems * size)


def pack(shape, kind, rows_at):
    """Bytes of a matrix; rows_at(first, end) gives floats. In slices, so that a large tensor never
    stands in memory as floats."""
    out = np.empty(packed_shape(shape, kind), dtype=np.uint8)
    step = max(1, CHUNK // shape[-1])
    for first in range(0, shape[0], step):
        end = min(shape[0], first + step)
        rows = np.ascontiguousarray(rows_at(first, end), dtype=np.float32)
        with np.errstate(divide="ignore", invalid="ignore"):
            out[first:end] = quantize(rows, kind).view(np.uint8)
    return out


def write_file(writer, tensors):
    """Header first, then one tensor after another. tensors: (name, shape, kind, make)."""
    for name, shape, kind, _ in tensors:
        if len(shape) > 1:
            check_row(name, shape[-1], kind)
        size = packed_shape(shape, kind)
        writer.add_tensor_info(name, size, np.dtype(np.uint8), int(np.prod(size, dtype=np.int64)),
                               GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for *_, make in tensors:
        writer.write_tensor_data(make())
    writer.close()


def random_matrix(seed, name, shape, kind, std):
    def make():
        rng = np.random.default_rng([seed, zlib.crc32(name.encode())])

        def rows_at(first, end):
            return rng.standard_normal((end - first, shape[1]), dtype=np.float32) * np.float32(std)

        return pack(shape, kind, rows_at)

    return name, shape, kind, make


def random_norm(seed, name, n, mean):
    def make():
        rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
        w = np.float32(mean) * (1 + 0.1 * rng.standard_normal(n, dtype=np.float32))
        return w.astype("<f4").view(np.uint8)

    return name, (n,), "F32", make


def asked_type(a, name, n_col, kind):
    """The type of a matrix: what --of says for the last word of its name, else kind; another where
    rows are too short for it."""
    word = name.removesuffix(".weight").split(".")[-1]
    return type_for(dict(a.of).get(word, kind), n_col)


def random_tensors(a):
    """Matrices of deviation 1/sqrt(columns) keep the size of what passes through them. Queries are
    four times that, so that attention picks out tokens and greedy text does not settle on one, and
    the last norm is near 3, so that the distribution over tokens has peaks."""

    def matrix(name, n_row, n_col, kind=a.type, gain=1.0):
        kind = asked_type(a, name, n_col, kind)
        return random_matrix(a.seed, name, (n_row, n_col), kind, gain / np.sqrt(n_col))

    tensors = [matrix("token_embd.weight", a.vocab, a.embd, a.embd_type)]
    for i in range(a.layers):
        p = f"blk.{i}."
        tensors += [
            random_norm(a.seed, p + "attn_norm.weight", a.embd, 1),
            matrix(p + "attn_q.weight", a.heads * a.head_dim, a.embd, gain=4.0),
            matrix(p + "attn_k.weight", a.kv_heads * a.head_dim, a.embd),
            matrix(p + "attn_v.weight", a.kv_heads * a.value_dim, a.embd),
            matrix(p + "attn_output.weight", a.embd, a.heads * a.value_dim),
            random_norm(a.seed, p + "ffn_norm.weight", a.embd, 1),
            matrix(p + "ffn_gate.weight", a.ff, a.embd),
            matrix(p + "ffn_up.weight", a.ff, a.embd),
            matrix(p + "ffn_down.weight", a.embd, a.ff),
        ]
    tensors.append(random_norm(a.seed, "output_norm.weight", a.embd, 3))
    if a.untied:
        tensors.append(matrix("output.weight", a.vocab, a.embd, a.embd_type))
    return tensors


# ---------------------------------------------------------------- commands


def check_random(a):
    if a.head_dim is None:
        if a.embd % a.heads:
            raise Problem(f"--embd {a.embd} is not a multiple of --heads {a.heads};"
                          " give --head-dim.")
        a.head_dim = a.embd // a.heads
    a.value_dim = a.value_dim or a.head_dim
    a.rope_dim = a.rope_dim or a.head_dim
    a.embd_type = a.embd_type or a.type
    if a.heads % a.kv_heads:
        raise Problem(f"--heads {a.heads} is not a multiple of --kv-heads {a.kv_heads}.")
    if a.rope_dim % 2 or a.rope_dim > a.head_dim:
        raise Problem(f"--rope-dim {a.rope_dim} must be even and at most --head-dim {a.head_dim}.")


def make_random(a):
    check_random(a)
    w = GGUFWriter(a.out, a.arch)
    w.add_name(f"random {a.arch} {a.layers}x{a.embd} seed {a.seed}")
    w.add_block_count(a.layers)
    w.add_context_length(a.ctx)
    w.add_embedding_length(a.embd)
    w.add_feed_forward_length(a.ff)
    w.add_head_count(a.heads)
    w.add_head_count_kv(a.kv_heads)
    w.add_key_length(a.head_dim)
    w.add_value_length(a.value_dim)
    w.add_layer_norm_rms_eps(1e-5)
    w.add_rope_dimension_count(a.rope_dim)
    w.add_rope_freq_base(a.rope_base)
    w.add_vocab_size(a.vocab)
    w.add_file_type(FILE_TYPES[a.type])
    w.add_quantization_version(2)
    add_vocab(w, a.vocab)
    write_file(w, random_tensors(a))


def copy_metadata(reader, kind, out):
    """A writer that has every key of the file, but for those that tell the weights' type."""
    arch = reader.fields["general.architecture"].contents()
    w = GGUFWriter(out, arch)
    changed = {"general.architecture", "general.file_type", "general.quantization_version"}
    for key, field in reader.fields.items():
        if key.startswith("GGUF.") or key in changed:
            continue
        sub = field.types[-1] if field.types[0] == GGUFValueType.ARRAY else None
        w.add_key_value(key, field.contents(), field.types[0], sub)
    w.add_file_type(FILE_TYPES[kind])
    w.add_quantization_version(2)
    field = reader.fields.get(Keys.General.ALIGNMENT)
    w.data_alignment = field.contents() if field else GGUF_DEFAULT_ALIGNMENT
    return w


def converted(t, kind):
    shape = tuple(int(n) for n in reversed(t.shape))
    if len(shape) != 2:
        raw = np.ascontiguousarray(t.data).view(np.uint8)
        return t.name, shape, t.tensor_type.name, lambda: raw

    def make():
        return pack(shape, kind, lambda first, end: quants.dequantize(t.data[first:end],
                                                                      t.tensor_type))

    return t.name, shape, kind, make


def make_converted(a):
    if os.path.exists(a.out) and os.path.samefile(a.input, a.out):
        raise Problem(f"{a.out} is the input; choose another name for the output.")
    reader = GGUFReader(a.input)
    ends = ("token_embd.weight", "output.weight")
    tensors = [converted(t, asked_type(a, t.name, int(t.shape[0]),
                                       (a.embd_type or a.type) if t.name in ends else a.type))
               for t in reader.tensors]
    write_file(copy_metadata(reader, a.type, a.out), tensors)


def make_blocks(a):
    """Of every type a matrix of random bytes, and beside it what the package gguf reads there."""
    rng = np.random.default_rng(a.seed)
    w = GGUFWriter(a.out, "blocks")
    for kind in TYPES:
        qtype = GGMLQuantizationType[kind]
        raw = np.ascontiguousarray(random_blocks(rng, kind, 37, 512)).view(np.uint8)
        read = quants.dequantize(raw.view(np.float32) if kind == "F32" else
                                 raw.view(np.float16) if kind == "F16" else raw, qtype)
        w.add_tensor(kind, raw, raw_dtype=qtype)
        w.add_tensor(kind + " read", read.astype(np.float32))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


TINY = "--layers 2 --embd 64 --heads 4 --kv-heads 2 --head-dim 32 --ff 96 --ctx 1024 --vocab 320"
SUITE = {
    "tiny-f32.gguf": "--type F32",
    "tiny-f16.gguf": "--type F16",
    "tiny-q8_0.gguf": "--type Q8_0",
    "tiny-q4_0.gguf": "--type Q4_0",
    "tiny-q4_1.gguf": "--type Q4_1 --embd-type Q8_0",
    "tiny-untied.gguf": "--type Q8_0 --untied",
    "tiny-mqa80.gguf": "--type F16 --head-dim 80 --kv-heads 1",
    "tiny-kv.gguf": "--type F32 --value-dim 48",
    "tiny-heads.gguf": "--type F16 --heads 20 --kv-heads 20 --head-dim 16 --layers 1",
    "tiny-rot16.gguf": "--type F32 --rope-dim 16",
    "tiny-deep.gguf": "--type F16 --layers 5",
}
# Every weight type again, wide enough for K types, each with a twin that holds as F32 what the
# package gguf reads in it. The last mixes types as real files do, within a layer's QKV too.
WIDE = "--layers 2 --embd 256 --heads 8 --kv-heads 2 --head-dim 32 --ff 512 --ctx 512 --vocab 320"
WEIGHTS = {kind.lower(): f"--type {kind}" for kind in TYPES if kind != "F32"}
WEIGHTS["mix"] = ("--type Q4_K --embd-type Q6_K --of attn_v=Q6_K --of attn_k=BF16"
                  " --of attn_output=Q5_0 --of ffn_up=Q5_K --of ffn_down=F32 --untied")


def make_suite(a):
    """Each file appears whole or not at all, so that a broken run leaves nothing to trip over."""
    os.makedirs(a.dir, exist_ok=True)
    for name, options in SUITE.items():
        path = os.path.join(a.dir, name)
        args = ["random", path + ".part", *TINY.split(), *options.split()]
        make_random(make_parser().parse_args(args))
        os.replace(path + ".part", path)
    make_weights_suite(a.dir)


def make_weights_suite(directory):
    def make(name, *args):
        path = os.path.join(directory, name)
        args = make_parser().parse_args([*args, path + ".part"])
        args.run(args)
        os.replace(path + ".part", path)
        return path

    make("blocks.gguf", "blocks")
    for name, options in WEIGHTS.items():
        path = make(f"weights-{name}.gguf", "random", *WIDE.split(), *options.split())
        make(f"weights-{name}-f32.gguf", "convert", "--type", "F32", path)


def count(text):
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def type_of_matrix(text):
    word, _, kind = text.partition("=")
    if kind not in TYPES:
        raise argparse.ArgumentTypeError(f"{text}: give the last word of a matrix's name, '=' and one"
                                         f" of {', '.join(TYPES)}")
    return word, kind


def add_type_options(p, default):
    p.add_argument("--type", choices=TYPES, default=default, required=default is None,
                   help="type of the matrices" + (f" ({default})" if default else ""))
    p.add_argument("--embd-type", choices=TYPES, help="type of embedding and head (--type)")
    p.add_argument("--of", type=type_of_matrix, action="append", default=[], metavar="NAME=TYPE",
                   help="type of the matrices of that name, as attn_v; can be repeated")


def make_parser():
    top = argparse.ArgumentParser(description=__doc__)
    commands = top.add_subparsers(dest="command", required=True)

    p = commands.add_parser("random", help="random weights")
    p.add_argument("out", metavar="OUT.gguf")
    p.add_argument("--arch", choices=["llama"], default="llama", help="architecture")
    for name, default, text in (
            ("--layers", 2, "layers"), ("--embd", 64, "width"), ("--heads", 4, "query heads"),
            ("--kv-heads", 2, "KV heads"), ("--ff", 128, "width of the feed-forward part"),
            ("--ctx", 512, "context length"), ("--vocab", 300, "tokens"),
            ("--head-dim", None, "elements of a key (embd / heads)"),
            ("--value-dim", None, "elements of a value (head-dim)"),
            ("--rope-dim", None, "elements that RoPE turns (head-dim)")):
        shown = text if default is None else f"{text} ({default})"
        p.add_argument(name, type=count, default=default, metavar="N", help=shown)
    p.add_argument("--rope-base", type=float, default=10000.0, metavar="B", help="RoPE base (10000)")
    add_type_options(p, "F32")
    p.add_argument("--untied", action="store_true", help="write a head of its own")
    p.add_argument("--seed", type=int, default=1, metavar="S", help="seed of the weights (1)")
    p.set_defaults(run=make_random)

    p = commands.add_parser("convert", help="the same model in another weight type")
    p.add_argument("input", metavar="IN.gguf")
    p.add_argument("out", metavar="OUT.gguf")
    add_type_options(p, None)
    p.set_defaults(run=make_converted)

    p = commands.add_parser("blocks", help="random bytes in every weight type, and their reading")
    p.add_argument("out", metavar="OUT.gguf")
    p.add_argument("--seed", type=int, default=1, metavar="S", help="seed of the bytes (1)")
    p.set_defaults(run=make_blocks)

    p = commands.add_parser("suite", help="all tiny models that the tests open")
    p.add_argument("dir", metavar="DIR")
    p.set_defaults(run=make_suite)
    return top


def main():
    args = make_parser().parse_args()
    try:
        args.run(args)
    except (Problem, OSError, ValueError, NotImplementedError) as e:
        sys.exit(f"make_model.py: {e}")


if __name__ == "__main__":
    main()
