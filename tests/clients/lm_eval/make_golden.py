"""Computes golden.json from the pocket model's weights with numpy: python make_golden.py MODEL_DIR.

The model is a Llama in float32, with one whole forward pass for each text. Neither the server nor lm-eval is used.
"""

import json
import sys
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

here = Path(__file__).parent
model = Path(sys.argv[1])
config = json.loads((model / "config.json").read_text())
tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))

raw = (model / "model.safetensors").read_bytes()
size = int.from_bytes(raw[:8], "little")
weights = {}
for name, entry in json.loads(raw[8 : 8 + size]).items():
    if name == "__metadata__":
        continue
    assert entry["dtype"] == "BF16", entry
    start, end = (8 + size + offset for offset in entry["data_offsets"])
    bits = np.frombuffer(raw[start:end], dtype=np.uint16).astype(np.uint32) << 16
    weights[name] = bits.view(np.float32).reshape(entry["shape"])

heads, kv_heads, dim = config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"]


def norm(x, name):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + config["rms_norm_eps"]) * weights[name]


def rotate(x):
    half = dim // 2
    angles = np.outer(np.arange(len(x)), config["rope_theta"] ** (-np.arange(half) / half))[:, None, :]
    a, b = x[..., :half], x[..., half:]
    return np.concatenate([a * np.cos(angles) - b * np.sin(angles), b * np.cos(angles) + a * np.sin(angles)], -1)


def logprobs(ids):
    """Returns the log-probabilities of every token after each prefix of ids."""
    x = weights["model.embed_tokens.weight"][ids]
    mask = np.triu(np.full((len(ids), len(ids)), -np.inf), 1)
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}"
        y = norm(x, f"{at}.input_layernorm.weight")
        q, k, v = (
            (y @ weights[f"{at}.self_attn.{part}_proj.weight"].T).reshape(len(ids), -1, dim) for part in "qkv"
        )
        q, k = rotate(q), rotate(k)
        k, v = (np.repeat(part, heads // kv_heads, axis=1) for part in (k, v))
        scores = np.einsum("qhd,khd->hqk", q, k) / np.sqrt(dim) + mask
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        scores /= scores.sum(-1, keepdims=True)
        x = x + np.einsum("hqk,khd->qhd", scores, v).reshape(len(ids), -1) @ weights[f"{at}.self_attn.o_proj.weight"].T
        y = norm(x, f"{at}.post_attention_layernorm.weight")
        gate, up = (y @ weights[f"{at}.mlp.{part}_proj.weight"].T for part in ("gate", "up"))
        x = x + (gate / (1 + np.exp(-gate)) * up) @ weights[f"{at}.mlp.down_proj.weight"].T
    logits = norm(x, "model.norm.weight") @ weights["model.embed_tokens.weight"].T
    return logits - np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1, keepdims=True)) - logits.max(
        -1, keepdims=True
    )


def encode(text):
    return tokenizer.encode(text, add_special_tokens=False).ids


def scored(context, continuation):
    rows = logprobs(context + continuation)[len(context) - 1 : -1]
    own = [row[token] for row, token in zip(rows, continuation)]
    greedy = all(int(row.argmax()) == token for row, token in zip(rows, continuation))
    return {"logprob": round(float(sum(own)), 4), "greedy": greedy}


def generated(context, most=6):
    ids = []
    while len(ids) < most:
        token = int(logprobs(context + ids)[-1].argmax())
        if token == config["eos_token_id"]:
            break
        ids.append(token)
    return tokenizer.decode(ids).split("\n")[0]


docs = [json.loads(line) for line in (here / "sums.jsonl").read_text().splitlines()]


def choice(question, text):
    # lm-eval encodes question and answer together and takes the tokens after the question.
    context, whole = encode(question), encode(question + " " + text)
    return scored(context, whole[len(context) :])


golden = {
    "choices": [[choice(doc["question"], text) for text in doc["choices"]] for doc in docs],
    # The first token is scored after the end-of-text token.
    "rolling": [scored([config["eos_token_id"]], encode(doc["question"]))["logprob"] for doc in docs],
    "generated": [generated(encode(doc["question"])) for doc in docs],
}
(here / "golden.json").write_text(json.dumps(golden, indent=1) + "\n")
