#!/usr/bin/env python3
"""Measures PyTorch for the training benchmark: transformers' Llama, sdpa attention, f32, fused AdamW, on the CPU.

  jsft_torch.py --what train   --hidden 192 --layers 5 --heads 6 --kv-heads 6 --ffn 512 --vocab 256
  jsft_torch.py --what prefill --lens lengths.txt
  jsft_torch.py --what decode  --batch 1,8,32 --prompt 64 --new 64

A batch is a list of sequence lengths, read from --lens (whitespace-separated numbers) or generated. Training runs
forward, backward, clipping and the optimizer step on that whole batch, in micro-batches of at most --micro-tokens
tokens (several sizes are tried), in two layouts; the fastest counts:
  padded   sequences sorted by length, padded to the longest of their micro-batch
  packed   sequences end to end in one row, position ids restarting, a block-diagonal causal mask
The loss is the weighted token mean; --weighted is the share of positions (the last of each sequence) that carry
weight. The output layer is computed at those positions alone, which is the fastest that plain PyTorch code allows.

Tokens/s count real tokens, never padding. The script prints one JSON object. Measure on an idle machine: with another
load on the cores OpenMP's threads wait for each other, and PyTorch seems several times slower than it is. The output
has the load average. Needs torch and transformers.
"""
import argparse
import json
import os
import random
import statistics
import time

ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
ap.add_argument("--what", default="train", choices=["train", "prefill", "decode"])
ap.add_argument("--hidden", type=int, default=192)
ap.add_argument("--layers", type=int, default=5)
ap.add_argument("--heads", type=int, default=6)
ap.add_argument("--kv-heads", type=int, default=6)
ap.add_argument("--head-dim", type=int, default=0, help="default: hidden / heads")
ap.add_argument("--ffn", type=int, default=512)
ap.add_argument("--vocab", type=int, default=256)
ap.add_argument("--untied", action="store_true")
ap.add_argument("--lens", help="a file of sequence lengths; default: --sequences lengths in --min-len..--max-len")
ap.add_argument("--sequences", type=int, default=64)
ap.add_argument("--min-len", type=int, default=24)
ap.add_argument("--max-len", type=int, default=160)
ap.add_argument("--micro-tokens", default="512,2048", help="a comma-separated list")
ap.add_argument("--weighted", type=float, default=0.5)
ap.add_argument("--layout", default="both", choices=["both", "padded", "packed"])
ap.add_argument("--dtype", default="f32", choices=["f32", "bf16"], help="bf16: autocast, the weights stay f32")
ap.add_argument("--steps", type=int, default=5, help="timed steps; one more is run first")
ap.add_argument("--batch", default="1,8,32", help="decode: sequences at a time")
ap.add_argument("--prompt", type=int, default=64)
ap.add_argument("--new", type=int, default=64)
ap.add_argument("--threads", type=int, default=2)
ap.add_argument("--seed", type=int, default=1)
a = ap.parse_args()

os.environ.setdefault("OMP_NUM_THREADS", str(a.threads))
import torch  # noqa: E402
import transformers  # noqa: E402
from transformers import LlamaConfig, LlamaForCausalLM  # noqa: E402

torch.set_num_threads(a.threads)
torch.manual_seed(a.seed)
rng = random.Random(a.seed)
model = LlamaForCausalLM(LlamaConfig(
    hidden_size=a.hidden, num_hidden_layers=a.layers, num_attention_heads=a.heads, num_key_value_heads=a.kv_heads,
    head_dim=a.head_dim or a.hidden // a.heads, intermediate_size=a.ffn, vocab_size=a.vocab,
    max_position_embeddings=4096, tie_word_embeddings=not a.untied, attn_implementation="sdpa"))
parameters = sum(p.numel() for p in model.parameters())
if a.lens:
    with open(a.lens) as fh:
        lens = [int(v) for v in fh.read().split()]
else:
    lens = [rng.randint(a.min_len, a.max_len) for _ in range(a.sequences)]
sequences = [torch.randint(0, a.vocab, (n,)) for n in lens]
tokens = sum(lens)


def weights_of(n):
    w = torch.zeros(n)
    w[n - max(1, round((n - 1) * a.weighted)):] = 1.0
    return w


def padded(limit):
    rows, batch = [], []
    for s in sorted(sequences, key=len):
        if batch and (len(batch) + 1) * len(s) > limit:
            rows.append(batch)
            batch = []
        batch.append(s)
    rows.append(batch)
    for batch in rows:
        width = max(map(len, batch))
        ids = torch.zeros(len(batch), width, dtype=torch.long)
        mask = torch.zeros(len(batch), width, dtype=torch.long)
        weight = torch.zeros(len(batch), width)
        for i, s in enumerate(batch):
            ids[i, :len(s)], mask[i, :len(s)], weight[i, :len(s)] = s, 1, weights_of(len(s))
        yield dict(input_ids=ids, attention_mask=mask), weight


def packed(limit):
    rows, batch = [], []
    for s in sequences:
        if batch and sum(map(len, batch)) + len(s) > limit:
            rows.append(batch)
            batch = []
        batch.append(s)
    rows.append(batch)
    for batch in rows:
        owner = torch.cat([torch.full((len(s),), i) for i, s in enumerate(batch)])
        n = len(owner)
        allowed = (owner[:, None] == owner[None]) & torch.ones(n, n).tril().bool()
        yield dict(input_ids=torch.cat(batch)[None], position_ids=torch.cat([torch.arange(len(s)) for s in batch])[None],
                   attention_mask=allowed[None, None]), torch.cat([weights_of(len(s)) for s in batch])[None]


def autocast():
    return torch.autocast("cpu", torch.bfloat16, enabled=a.dtype == "bf16")


def train(layout, limit):
    micro = list({"padded": padded, "packed": packed}[layout](limit))
    total = float(sum(w.sum() for _, w in micro))
    optim = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)

    def step():
        t = time.perf_counter()
        optim.zero_grad(set_to_none=True)
        for inputs, weight in micro:
            with autocast():
                hidden = model.model(**inputs, use_cache=False).last_hidden_state
                # Position i predicts token i + 1. A sequence's first token has no weight, so no prediction crosses a border.
                at = weight[:, 1:] > 0
                logits = model.lm_head(hidden[:, :-1][at])
            nll = torch.nn.functional.cross_entropy(logits.float(), inputs["input_ids"][:, 1:][at], reduction="none")
            ((nll * weight[:, 1:][at]).sum() / total).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optim.step()
        return time.perf_counter() - t

    step()
    seconds = statistics.median(step() for _ in range(a.steps))
    computed = sum(i["input_ids"].numel() for i, _ in micro)
    return {"layout": layout, "micro_tokens": limit, "step_s": seconds, "tokens_per_s": tokens / seconds, "micro_batches": len(micro),
            "computed_tokens": computed}


@torch.inference_mode()
def prefill(layout, limit):
    micro = list({"padded": padded, "packed": packed}[layout](limit))

    def step():
        t = time.perf_counter()
        for inputs, weight in micro:
            with autocast():
                hidden = model.model(**inputs, use_cache=False).last_hidden_state
                model.lm_head(hidden[weight > 0])
        return time.perf_counter() - t

    step()
    seconds = statistics.median(step() for _ in range(a.steps))
    return {"layout": layout, "micro_tokens": limit, "step_s": seconds, "tokens_per_s": tokens / seconds, "micro_batches": len(micro)}


@torch.inference_mode()
def decode(batch):
    def generate():
        x = torch.randint(0, a.vocab, (batch, a.prompt))
        with autocast():
            out = model(x, use_cache=True, logits_to_keep=1)
            t = time.perf_counter()
            for _ in range(a.new):
                x = out.logits[:, -1].argmax(-1, keepdim=True)
                out = model(x, past_key_values=out.past_key_values, use_cache=True)
        return time.perf_counter() - t

    generate()
    seconds = statistics.median(generate() for _ in range(max(1, a.steps // 2)))
    return {"batch": batch, "seconds": seconds, "tokens_per_s": batch * a.new / seconds}


layouts = ["padded", "packed"] if a.layout == "both" else [a.layout]
if a.what == "decode":
    rows = [decode(int(b)) for b in a.batch.split(",")]
else:
    rows = [{"train": train, "prefill": prefill}[a.what](layout, int(limit))
            for layout in layouts for limit in a.micro_tokens.split(",")]
print(json.dumps({
    "what": a.what, "best_tokens_per_s": max(r["tokens_per_s"] for r in rows), "rows": rows,
    "parameters": parameters, "sequences": len(lens), "tokens": tokens, "dtype": a.dtype, "threads": a.threads,
    "load_average": os.getloadavg()[0],
    "shape": {"hidden": a.hidden, "layers": a.layers, "heads": a.heads, "kv_heads": a.kv_heads, "ffn": a.ffn,
              "vocab": a.vocab, "tied": not a.untied},
    "torch": torch.__version__, "transformers": transformers.__version__}))
