#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
# Writes tests/data/arch-reference.json: what the library transformers computes with the weights of
# make_arch.py. Run by hand when a case is added; tests read the file alone. Needs torch and
# transformers beside gguf and numpy.
"""Make the reference logits of the architectures."""

import json

import numpy as np
import torch
import transformers
from transformers import (Gemma3ForCausalLM, Gemma3TextConfig, LlamaConfig, LlamaForCausalLM,
                          MistralConfig, MistralForCausalLM, Qwen2Config, Qwen2ForCausalLM,
                          Qwen3Config, Qwen3ForCausalLM)

from transformers.models.gemma3 import modeling_gemma3

from make_arch import CASES, REFERENCE, case_of, checksum, local, weights

N_TOKEN = 220
POSITIONS = [0, 50, 71, 130, 200, 219]
NAMES = {
    "token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm",
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}
GEMMA_NAMES = {"ffn_norm": "pre_feedforward_layernorm",
               "post_attention_norm": "post_attention_layernorm",
               "post_ffw_norm": "post_feedforward_layernorm"}


# Its attention knows soft caps and a model's configuration has one, but the call between them leaves
# it out, since no published gemma3 sets it.
plain_attention = modeling_gemma3.eager_attention_forward


def capped_attention(module, *args, **more):
    return plain_attention(module, *args, softcap=module.attn_logit_softcapping, **more)


modeling_gemma3.eager_attention_forward = capped_attention


def rope_of(c):
    return {"rope_type": "default", **c["scaling"], "rope_theta": c["base"]}


def model_of(c):
    common = {"vocab_size": c["vocab"], "hidden_size": c["embd"], "intermediate_size": c["ff"],
              "num_hidden_layers": c["layers"], "num_attention_heads": c["heads"],
              "num_key_value_heads": c["kv_heads"], "head_dim": c["dim"],
              "max_position_embeddings": c["ctx"], "rms_norm_eps": c["eps"],
              "tie_word_embeddings": not c["untied"], "attn_implementation": "eager"}
    if c["arch"] == "gemma3":
        # The published 27B model divides by embd / heads, the others by a head's size.
        wide = c["layers"] == 62
        config = Gemma3TextConfig(
            **common, sliding_window=c["window"],
            layer_types=["sliding_attention" if local(c, i) else "full_attention"
                         for i in range(c["layers"])],
            rope_parameters={"full_attention": rope_of(c),
                             "sliding_attention": {"rope_type": "default",
                                                   "rope_theta": c["local_base"]}},
            query_pre_attn_scalar=c["embd"] // c["heads"] if wide else c["dim"],
            attn_logit_softcapping=c["soft_cap"] or None,
            final_logit_softcapping=c["logit_cap"] or None)
        return Gemma3ForCausalLM(config)
    if c["window"]:
        return MistralForCausalLM(MistralConfig(**common, rope_parameters=rope_of(c),
                                                sliding_window=c["window"]))
    kinds = {"llama": (LlamaConfig, LlamaForCausalLM), "qwen2": (Qwen2Config, Qwen2ForCausalLM),
             "qwen3": (Qwen3Config, Qwen3ForCausalLM)}
    config, model = kinds[c["arch"]]
    return model(config(**common, rope_parameters=rope_of(c)))


def state_of(c):
    names = {**NAMES, **(GEMMA_NAMES if c["arch"] == "gemma3" else {})}
    out = {}
    for name, x in weights(c).items():
        if c["arch"] == "gemma3" and "norm" in name:
            x = x - np.float32(1)
        if name.startswith("blk."):
            _, layer, part, kind = name.split(".")
            name = f"model.layers.{layer}.{names[part]}.{kind}"
        else:
            name = names[name]
        out[name] = torch.from_numpy(x)
    return out


def reference(c, tokens):
    model = model_of(c).float().eval()
    lost = model.load_state_dict(state_of(c), strict=False)
    missing = [k for k in lost.missing_keys if k != "lm_head.weight"]
    if missing or lost.unexpected_keys or (c["untied"] and lost.missing_keys):
        raise SystemExit(f"{c['name']}: {missing} are missing, {lost.unexpected_keys} unknown")
    model.tie_weights()
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0]
    return logits[POSITIONS].numpy()


def main():
    tokens = [int(t) for t in np.random.default_rng(5).integers(0, 272, N_TOKEN)]
    cases = {}
    for name in CASES:
        c = case_of(name)
        logits = reference(c, tokens)
        print(f"{name}: logits within ±{abs(logits).max():.1f}, deviation {logits.std():.2f}")
        cases[name] = {"weights": checksum(weights(c)),
                       "logits": [[round(float(x), 5) for x in row] for row in logits]}
    with open(REFERENCE, "w", encoding="utf-8") as f:
        f.write(json.dumps({"made_with": f"transformers {transformers.__version__}, torch "
                                         f"{torch.__version__}", "tokens": tokens,
                            "positions": POSITIONS, "cases": cases}, separators=(",", ":"))
                .replace("},", "},\n").replace("],", "],\n") + "\n")


if __name__ == "__main__":
    main()
