"""Runs lm-eval against a server: python run.py BASE_URL MODEL_DIR. With --check it only tests that lm-eval is installed.

Every number is compared with golden.json, which make_golden.py computes from the model's weights alone.
"""

import json
import os
import sys
from pathlib import Path

# The script downloads nothing.
os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TOKENIZERS_PARALLELISM="false", OPENAI_API_KEY="secret")

import lm_eval  # noqa: E402
import transformers  # noqa: E402, F401
from lm_eval.tasks import TaskManager  # noqa: E402

if sys.argv[1] == "--check":
    sys.exit(0)

url, model = sys.argv[1], str(Path(sys.argv[2]).resolve())
here = Path(__file__).parent
os.chdir(here)
golden = json.loads((here / "golden.json").read_text())
results = lm_eval.simple_evaluate(
    model="local-completions",
    model_args={
        "model": "pocket",
        "base_url": f"{url}/v1/completions",
        "tokenizer": model,
        "max_length": 512,
        "num_concurrent": 2,
        "max_retries": 1,
    },
    tasks=["sums_choice", "sums_rolling", "sums_generate"],
    task_manager=TaskManager(include_path=str(here), include_defaults=False),
    log_samples=True,
    bootstrap_iters=0,
)


def close(told, exact):
    # Some processors multiply in bf16, so the comparison has a tolerance.
    assert abs(told - exact) < 0.1 + 0.02 * abs(exact), (told, exact)


samples = {task: sorted(of, key=lambda sample: sample["doc_id"]) for task, of in results["samples"].items()}
for sample, exact in zip(samples["sums_choice"], golden["choices"], strict=True):
    for (told,), wanted in zip(sample["resps"], exact, strict=True):
        close(float(told[0]), wanted["logprob"])
        assert str(told[1]) == str(wanted["greedy"]), (told, wanted)
for sample, wanted in zip(samples["sums_rolling"], golden["rolling"], strict=True):
    told = sample["resps"][0][0]
    close(float(told[0] if isinstance(told, (list, tuple)) else told), wanted)
for sample, wanted in zip(samples["sums_generate"], golden["generated"], strict=True):
    assert sample["resps"][0][0] == wanted, (sample["resps"], wanted)
print("lm-eval agrees with the model's own numbers")
