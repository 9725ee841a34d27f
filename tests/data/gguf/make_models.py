"""Makes the GGUF files of this folder, and blocks.safetensors.

    pip install gguf numpy safetensors
    python make_models.py

NAME.gguf is the checkpoint ../../fixtures/arch/NAME in the tensor names and the order of rows that llama.cpp expects, with a small
vocabulary. blocks.gguf has a tensor of every supported type, and blocks.safetensors their values as the package gguf computes them.
"""

import json
import math
import struct
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type
from gguf import quants
from safetensors.numpy import save_file

HERE = Path(__file__).parent
ARCH = HERE / "../../fixtures/arch"

NAMES = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    "mlp.gate": "ffn_gate_inp",
}
# Names of architectures with norms in other places, or projections in one layer.
OWN = {
    "olmo2": {"post_attention_layernorm": "post_attention_norm", "post_feedforward_layernorm": "post_ffw_norm"},
    "phi3": {"self_attn.qkv_proj": "attn_qkv", "mlp.gate_up_proj": "ffn_up"},
}
OWN["gemma2"] = OWN["gemma3"] = {**OWN["olmo2"], "pre_feedforward_layernorm": "ffn_norm"}
PAIRED = ("llama", "granite")
WHOLE = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight", "lm_head.weight": "output.weight"}
TYPES = {"F32": (Type.F32, np.float32, 4), "F16": (Type.F16, np.float16, 2), "BF16": (Type.BF16, np.uint8, 2)}


def read(path):
    """Reads a safetensors file as names with types and arrays; numpy has no bfloat16, which stays bytes."""
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    for name, entry in sorted(header.items()):
        if name != "__metadata__":
            kind, numpy_type, size = TYPES[entry["dtype"]]
            start, end = entry["data_offsets"]
            values = np.frombuffer(raw[8 + length + start : 8 + length + end], dtype=numpy_type)
            shape = entry["shape"]
            if numpy_type == np.uint8:
                shape = [*shape[:-1], shape[-1] * size]
            yield name, kind, values.reshape(shape)


def paired(rows, heads):
    """Puts rows i and i + dim / 2 of each head side by side."""
    out = rows.shape[0]
    return rows.reshape(heads, 2, out // heads // 2, -1).swapaxes(1, 2).reshape(rows.shape)


def renamed(name, architecture):
    if name in WHOLE:
        return WHOLE[name]
    _, _, layer, rest = name.split(".", 3)
    part, kind = rest.rsplit(".", 1)
    own = OWN.get(architecture, {})
    return f"blk.{layer}.{own.get(part) or NAMES[part]}.{kind}"


def vocabulary(writer):
    tokens = ["<unk>", "<s>", "</s>", *(chr(code) for code in range(ord("!"), ord("!") + 76)), "ab"]
    kinds = gguf.TokenType
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([kinds.UNKNOWN, kinds.CONTROL, kinds.CONTROL, *[kinds.NORMAL] * 77])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_chat_template("{% for m in messages %}<s>{{ m['content'] }}</s>{% endfor %}")


def finish(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def llama3_factors(scaling, theta, dim):
    low, high, original = scaling["low_freq_factor"], scaling["high_freq_factor"], scaling["original_max_position_embeddings"]
    factors = []
    for i in range(0, dim, 2):
        length = 2 * math.pi * theta ** (i / dim)
        if length < original / high:
            factors.append(1.0)
        elif length > original / low:
            factors.append(scaling["factor"])
        else:
            smooth = (original / length - low) / (high - low)
            factors.append(1 / ((1 - smooth) / scaling["factor"] + smooth))
    return np.array(factors, dtype=np.float32)


def family(writer, config, rope, architecture):
    """Writes what single architectures have beside the common keys."""
    if architecture == "gemma2":
        writer.add_attn_logit_softcapping(config["attn_logit_softcapping"])
    if architecture in ("gemma2", "gemma3"):
        writer.add_sliding_window(config["sliding_window"])
        if config["final_logit_softcapping"]:
            writer.add_final_logit_softcapping(config["final_logit_softcapping"])
    if architecture == "gemma3":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
        writer.add_float32("gemma3.rope.freq_base_swa", config["rope_local_base_freq"])
    if architecture == "qwen3moe":
        writer.add_expert_count(config["num_experts"])
        writer.add_expert_used_count(config["num_experts_per_tok"])
        writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
    if architecture == "granite":
        writer.add_attention_scale(config["attention_multiplier"])
        writer.add_embedding_scale(config["embedding_multiplier"])
        writer.add_residual_scale(config["residual_multiplier"])
        writer.add_logit_scale(config["logits_scaling"])
    if architecture == "phi3":
        original = config["original_max_position_embeddings"]
        head_dim = config["hidden_size"] // config["num_attention_heads"]
        writer.add_rope_dimension_count(int(config["partial_rotary_factor"] * head_dim))
        writer.add_rope_scaling_orig_ctx_len(original)
        writer.add_sliding_window(config.get("sliding_window") or 0)
        stretch = config["max_position_embeddings"] / original
        writer.add_rope_scaling_attn_factors(math.sqrt(1 + math.log(stretch) / math.log(original)))
        for kind in ("long", "short"):
            writer.add_tensor(f"rope_factors_{kind}.weight", np.array(rope[f"{kind}_factor"], dtype=np.float32))


def model(name, architecture):
    config = json.loads((ARCH / name / "config.json").read_text())
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    head_dim = config.get("head_dim", config["hidden_size"] // heads)
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    theta = rope.get("rope_theta", config.get("rope_theta"))
    writer = gguf.GGUFWriter(HERE / f"{name}.gguf", architecture)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(theta)
    if "head_dim" in config:
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)
    kind = rope.get("rope_type", "default")
    if kind == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope["factor"])
    if "original_max_position_embeddings" in rope:
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    if kind == "llama3":
        writer.add_tensor("rope_freqs.weight", llama3_factors(rope, theta, head_dim))
    family(writer, config, rope, architecture)
    vocabulary(writer)
    stacks = {}
    for tensor, dtype, values in read(ARCH / name / "model.safetensors"):
        if ".experts." in tensor:
            layer, part = tensor.split(".")[2], tensor.split(".")[-2].removesuffix("_proj")
            stacks.setdefault(f"blk.{layer}.ffn_{part}_exps.weight", (dtype, []))[1].append(values)
            continue
        if architecture.startswith("gemma") and tensor.endswith("norm.weight"):
            values = values + np.float32(1)
        if architecture in PAIRED and (".q_proj." in tensor or ".k_proj." in tensor):
            values = paired(values, heads if ".q_proj." in tensor else kv_heads)
        writer.add_tensor(renamed(tensor, architecture), np.ascontiguousarray(values), raw_dtype=dtype)
    for tensor, (dtype, matrices) in stacks.items():
        writer.add_tensor(tensor, np.stack(matrices), raw_dtype=dtype)
    finish(writer)


def k_blocks(kind, draw, rows, columns):
    """Returns random blocks of a type that the package cannot make: any bytes are, if the scales are finite and small."""
    values, size = gguf.GGML_QUANT_SIZES[kind]
    blocks = draw.integers(0, 256, (rows, columns // values, size), dtype=np.uint8)
    scales = {Type.Q4_K: [0, 2], Type.Q5_K: [0, 2], Type.Q6_K: [size - 2]}[kind]
    for at in scales:
        scale = draw.uniform(-0.02, 0.02, (rows, columns // values, 1)).astype(np.float16)
        blocks[:, :, at : at + 2] = scale.view(np.uint8)
    return blocks.reshape(rows, -1)


def blocks():
    draw = np.random.default_rng(3)
    writer = gguf.GGUFWriter(HERE / "blocks.gguf", "llama")
    writer.add_head_count(1)
    values = {}
    for kind in [Type.F32, Type.F16, Type.BF16, Type.Q8_0, Type.Q4_0, Type.Q4_1, Type.Q5_0, Type.Q5_1, Type.Q4_K, Type.Q5_K, Type.Q6_K]:
        if kind in (Type.Q4_K, Type.Q5_K, Type.Q6_K):
            data = k_blocks(kind, draw, 3, 512)
        else:
            data = quants.quantize(draw.normal(0, 0.1, (3, 64)).astype(np.float32), kind)
        writer.add_tensor(kind.name, data, raw_dtype=kind)
        values[kind.name] = np.ascontiguousarray(quants.dequantize(data, kind).astype(np.float32))
    finish(writer)
    save_file(values, HERE / "blocks.safetensors")


for name, architecture in [
    ("llama3", "llama"), ("llama_bias", "llama"), ("llama_yarn", "llama"), ("qwen2", "qwen2"), ("qwen3", "qwen3"), ("olmo2", "olmo2"),
    ("phi3_longrope", "phi3"), ("granite", "granite"), ("gemma2", "gemma2"), ("gemma3", "gemma3"),
    ("qwen3_moe", "qwen3moe"),
]:
    model(name, architecture)
blocks()
