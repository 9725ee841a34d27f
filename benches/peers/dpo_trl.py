#!/usr/bin/env python3
"""Measures TRL's DPOTrainer on the step of `cargo bench --bench dpo`, and prints seconds and peak memory as one JSON line.

  dpo_trl.py --model DIR [--pairs 4] [--prompt-tokens 128] [--response-tokens 128] [--rank 16] [--steps 5] [--threads N]
             [--gradient-checkpointing] [--precompute-ref]      needs torch, transformers, trl, peft, datasets

The model runs in f32 on the CPU with LoRA on all linear layers. The reference is the model without LoRA. The first step
is not counted.
"""
import argparse
import json
import os
import random
import resource
import statistics
import tempfile
import time

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--model", required=True)
for name, default in (("pairs", 4), ("prompt-tokens", 128), ("response-tokens", 128), ("rank", 16), ("steps", 5),
                      ("threads", os.cpu_count())):
    parser.add_argument("--" + name, type=int, default=default)
parser.add_argument("--gradient-checkpointing", action="store_true")
parser.add_argument("--precompute-ref", action="store_true")
said = parser.parse_args()
os.environ.update(OMP_NUM_THREADS=str(said.threads), HF_HUB_OFFLINE="1", CUDA_VISIBLE_DEVICES="")

import torch  # noqa: E402
import trl  # noqa: E402
from datasets import Dataset  # noqa: E402
from peft import LoraConfig  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback  # noqa: E402

torch.set_num_threads(said.threads)
tokenizer = AutoTokenizer.from_pretrained(said.model)
model = AutoModelForCausalLM.from_pretrained(said.model, dtype=torch.float32)
random.seed(1)
# Each of these words is one token, so a text has as many tokens as words.
words = sorted(w for w in (v[1:] for v in tokenizer.get_vocab() if v.startswith("\u0120"))
               if len(w) > 2 and w.isascii() and w.isalpha() and len(tokenizer.encode(" " + w, add_special_tokens=False)) == 1)


def text(count):
    return "".join(" " + random.choice(words) for _ in range(count))


rows = [{"prompt": text(said.prompt_tokens), "chosen": text(said.response_tokens - 1),
         "rejected": text(said.response_tokens - 1)} for _ in range(said.pairs)]


class Clock(TrainerCallback):
    seconds = []

    def on_step_begin(self, *_, **__):
        self.began = time.perf_counter()

    def on_step_end(self, *_, **__):
        self.seconds.append(time.perf_counter() - self.began)


def memory():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


loaded = memory()
with tempfile.TemporaryDirectory() as out:
    config = trl.DPOConfig(
        output_dir=out, per_device_train_batch_size=said.pairs, max_steps=said.steps + 1, learning_rate=1e-7, beta=0.1,
        lr_scheduler_type="constant", max_length=None, use_cpu=True, bf16=False,
        gradient_checkpointing=said.gradient_checkpointing, precompute_ref_log_probs=said.precompute_ref,
        optim="adamw_torch", save_strategy="no", report_to="none", disable_tqdm=True, dataloader_pin_memory=False)
    lora = LoraConfig(r=said.rank, lora_alpha=2 * said.rank, lora_dropout=0.0, task_type="CAUSAL_LM", target_modules=[
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"])
    clock = Clock()
    trainer = trl.DPOTrainer(model=model, args=config, train_dataset=Dataset.from_list(rows), processing_class=tokenizer,
                             peft_config=lora, callbacks=[clock])
    example = trainer.train_dataset[0]
    trainer.train()
print(json.dumps({
    "trl": trl.__version__, "torch": torch.__version__, "threads": said.threads,
    "tokens": [len(example[k]) for k in ("prompt_ids", "chosen_ids", "rejected_ids")],
    "seconds_per_step": statistics.median(clock.seconds[1:]),
    "memory_mib_loaded": loaded, "memory_mib_peak": memory(),
}))
