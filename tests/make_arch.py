#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
# Writes a tiny model of every supported architecture and kind of RoPE scaling, with random weights
# that make_arch_reference.py gives to an independent implementation too. Weights are made in the
# layout of the original models; what a converter changes on the way to GGUF (pairs of RoPE, norms
# with their 1 added) is changed here. Needs the packages gguf and numpy.
"""Make GGUF model files of all architectures for tests."""

import json
import math
import os
import sys
import zlib

import numpy as np
from gguf import GGUFWriter

from make_model import Problem, add_vocab, make_parser, write_file

REFERENCE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "data", "arch-reference.json")
COMMON = {"layers": 3, "embd": 96, "heads": 6, "kv_heads": 2, "dim": 24, "ff": 96, "vocab": 272,
          "ctx": 1024, "base": 10000.0, "eps": 1e-5, "untied": False, "scaling": {}}
# Windows and all first contexts but one, in which YaRN's default bounds lie, are shorter than the 220
# tokens of the reference; heads are never embd / heads wide.
CASES = {
    "llama": {"arch": "llama", "untied": True, "base": 50000.0},
    "llama-window": {"arch": "llama", "window": 70, "dim": 32},
    "llama-linear": {"arch": "llama", "scaling": {"rope_type": "linear", "factor": 4.0}},
    "llama-llama3": {"arch": "llama", "dim": 40, "base": 500000.0,
                     "scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                                 "high_freq_factor": 4.0,
                                 "original_max_position_embeddings": 64}},
    "llama-yarn": {"arch": "llama", "dim": 64, "heads": 4,
                   "scaling": {"rope_type": "yarn", "factor": 4.0, "beta_fast": 4.0,
                               "original_max_position_embeddings": 64}},
    "qwen2": {"arch": "qwen2", "base": 1e6, "eps": 1e-6},
    "qwen2-yarn": {"arch": "qwen2", "dim": 128, "heads": 2, "kv_heads": 1, "untied": True,
                   "base": 1e6,
                   "scaling": {"rope_type": "yarn", "factor": 8.0, "beta_slow": 2.0,
                               "original_max_position_embeddings": 512}},
    "qwen3": {"arch": "qwen3", "base": 1e6, "dim": 256, "heads": 4, "eps": 1e-6},
    "gemma3": {"arch": "gemma3", "layers": 7, "window": 40, "base": 1e6, "dim": 32, "heads": 4,
               "eps": 1e-6, "scaling": {"rope_type": "linear", "factor": 8.0}},
    "gemma3-caps": {"arch": "gemma3", "layers": 4, "window": 70, "pattern": 3, "base": 1e6,
                    "local_base": 5000.0, "dim": 48, "heads": 4, "kv_heads": 1, "eps": 1e-6,
                    "soft_cap": 4.0, "logit_cap": 5.0},
    "gemma3-wide": {"arch": "gemma3", "layers": 62, "window": 64, "base": 1e6, "embd": 32,
                    "heads": 2, "kv_heads": 1, "ff": 48, "eps": 1e-6},
}


def case_of(name):
    return {**COMMON, "window": 0, "pattern": 6, "local_base": 10000.0, "soft_cap": 0.0,
            "logit_cap": 0.0, "name": name, **CASES[name]}


def local(c, layer):
    """Whether a layer has the model's window."""
    return c["window"] > 0 and (c["arch"] != "gemma3" or (layer + 1) % c["pattern"] != 0)


# ---------------------------------------------------------------- weights


def random_array(c, name, shape, mean, std):
    rng = np.random.default_rng([zlib.crc32(c["name"].encode()), zlib.crc32(name.encode())])
    x = rng.standard_normal(shape, dtype=np.float32)
    return (np.float32(mean) + np.float32(std) * x).astype(np.float32)


def weights(c):
    """Arrays by their names in the file: matrices [rows, columns] as the original model has them,
    norms with the 1 added. Queries are large, so that attention picks out tokens; biases, norms
    and the scores that soft caps bend are far from what would hide a mistake."""
    out = {}

    def matrix(name, rows, cols, gain=1.0):
        out[name] = random_array(c, name, (rows, cols), 0.0, gain / math.sqrt(cols))

    def vector(name, n, mean, std):
        out[name] = random_array(c, name, (n,), mean, std)

    q, k, e = c["heads"] * c["dim"], c["kv_heads"] * c["dim"], c["embd"]
    matrix("token_embd.weight", c["vocab"], e)
    vector("output_norm.weight", e, 3.0, 0.3)
    if c["untied"]:
        matrix("output.weight", c["vocab"], e)
    for i in range(c["layers"]):
        p = f"blk.{i}."
        vector(p + "attn_norm.weight", e, 1.0, 0.2)
        vector(p + "ffn_norm.weight", e, 1.0, 0.2)
        matrix(p + "attn_q.weight", q, e, 3.0)
        matrix(p + "attn_k.weight", k, e)
        matrix(p + "attn_v.weight", k, e)
        matrix(p + "attn_output.weight", e, q)
        matrix(p + "ffn_gate.weight", c["ff"], e)
        matrix(p + "ffn_up.weight", c["ff"], e)
        matrix(p + "ffn_down.weight", e, c["ff"])
        if c["arch"] == "qwen2":
            vector(p + "attn_q.bias", q, 0.0, 1.0)
            vector(p + "attn_k.bias", k, 0.0, 1.0)
            vector(p + "attn_v.bias", k, 0.0, 0.5)
        if c["arch"] in ("qwen3", "gemma3"):
            vector(p + "attn_q_norm.weight", c["dim"], 2.0, 0.4)
            vector(p + "attn_k_norm.weight", c["dim"], 1.0, 0.3)
        if c["arch"] == "gemma3":
            vector(p + "post_attention_norm.weight", e, 0.5, 0.2)
            vector(p + "post_ffw_norm.weight", e, 0.5, 0.2)
    return out


def checksum(tensors):
    crc = 0
    for name in sorted(tensors):
        crc = zlib.crc32(np.ascontiguousarray(tensors[name]).tobytes(), crc)
    return crc


def adjacent_pairs(w, heads):
    """Rows of a llama's queries or keys as its converter orders them: halves become pairs."""
    return w.reshape(heads, 2, w.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(w.shape)


def llama3_divisors(c):
    """What llama3's factors come to for each pair (arXiv:2407.21783)."""
    s, n = c["scaling"], c["dim"]
    first = s["original_max_position_embeddings"]
    out = []
    for i in range(0, n, 2):
        wave = 2 * math.pi * c["base"] ** (i / n)
        if wave < first / s["high_freq_factor"]:
            out.append(1.0)
        elif wave > first / s["low_freq_factor"]:
            out.append(s["factor"])
        else:
            smooth = first / wave - s["low_freq_factor"]
            smooth /= s["high_freq_factor"] - s["low_freq_factor"]
            out.append(1 / ((1 - smooth) / s["factor"] + smooth))
    return np.array(out, dtype=np.float32)


def file_tensors(c):
    tensors = weights(c)
    if c["arch"] == "llama":
        for i in range(c["layers"]):
            for name, heads in (("attn_q", c["heads"]), ("attn_k", c["kv_heads"])):
                key = f"blk.{i}.{name}.weight"
                tensors[key] = adjacent_pairs(tensors[key], heads)
    if c["scaling"].get("rope_type") == "llama3":
        tensors["rope_freqs.weight"] = llama3_divisors(c)
    return tensors


# ---------------------------------------------------------------- files


def add_keys(w, c):
    arch, s = c["arch"], c["scaling"]
    w.add_name(f"random {c['name']}")
    w.add_block_count(c["layers"])
    w.add_context_length(c["ctx"])
    w.add_embedding_length(c["embd"])
    w.add_feed_forward_length(c["ff"])
    w.add_head_count(c["heads"])
    w.add_head_count_kv(c["kv_heads"])
    w.add_key_length(c["dim"])
    w.add_value_length(c["dim"])
    w.add_layer_norm_rms_eps(c["eps"])
    w.add_rope_freq_base(c["base"])
    if s.get("rope_type") in ("linear", "yarn"):
        w.add_string(f"{arch}.rope.scaling.type", s["rope_type"])
        w.add_float32(f"{arch}.rope.scaling.factor", s["factor"])
    if s.get("rope_type") == "yarn":
        w.add_uint32(f"{arch}.rope.scaling.original_context_length",
                     s["original_max_position_embeddings"])
        for key in ("beta_fast", "beta_slow"):
            if key in s:
                w.add_float32(f"{arch}.rope.scaling.yarn_{key}", s[key])
    if c["window"]:
        w.add_uint32(f"{arch}.attention.sliding_window", c["window"])
    if c["soft_cap"]:
        w.add_float32(f"{arch}.attn_logit_softcapping", c["soft_cap"])
    if c["logit_cap"]:
        w.add_float32(f"{arch}.final_logit_softcapping", c["logit_cap"])
    if arch == "gemma3" and c["pattern"] != 6:
        w.add_uint32(f"{arch}.attention.sliding_window_pattern", c["pattern"])
    if arch == "gemma3" and c["local_base"] != 10000.0:
        w.add_float32(f"{arch}.rope.freq_base_swa", c["local_base"])
    w.add_vocab_size(c["vocab"])
    w.add_file_type(0)


def write_case(c, path):
    w = GGUFWriter(path, c["arch"])
    add_keys(w, c)
    add_vocab(w, c["vocab"])
    write_file(w, [(name, x.shape, "F32", lambda x=x: np.ascontiguousarray(x).view(np.uint8))
                   for name, x in file_tensors(c).items()])


def check_same(reference, c):
    """The reference is of these very weights."""
    want = reference["cases"].get(c["name"], {}).get("weights")
    if want != checksum(weights(c)):
        raise Problem(f"the weights of '{c['name']}' aren't those of {REFERENCE}; write it anew with"
                      " make_arch_reference.py")


def main():
    if len(sys.argv) != 2:
        sys.exit("usage: make_arch.py DIR")
    try:
        with open(REFERENCE, encoding="utf-8") as f:
            reference = json.load(f)
        os.makedirs(sys.argv[1], exist_ok=True)
        for name in CASES:
            c, path = case_of(name), os.path.join(sys.argv[1], f"arch-{name}.gguf")
            check_same(reference, c)
            write_case(c, path + ".part")
            os.replace(path + ".part", path)
        # For products of integers, which round too much to be compared with the reference.
        source = os.path.join(sys.argv[1], "arch-gemma3-caps.gguf")
        path = os.path.join(sys.argv[1], "arch-gemma3-caps-q8_0.gguf")
        args = make_parser().parse_args(["convert", source, path + ".part", "--type", "Q8_0"])
        args.run(args)
        os.replace(path + ".part", path)
    except (Problem, OSError, ValueError) as e:
        sys.exit(f"make_arch.py: {e}")


if __name__ == "__main__":
    main()
