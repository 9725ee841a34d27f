"""Writes `llama_bias_quantised.gguf`: the model of `llama_bias.gguf` with its matrices in blocks of Q4_1, Q8_0, Q4_0 and Q5_0.

Python 3 without packages: python3 make_quantised.py
"""

import struct
from pathlib import Path

HERE = Path(__file__).parent
F32, F16, Q4_0, Q4_1, Q5_0, Q8_0, BF16 = 0, 1, 2, 3, 6, 8, 30
SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
ALIGNMENT = 32


class Reader:
    def __init__(self, data):
        self.data, self.at = data, 0

    def take(self, count):
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, kind):
        return struct.unpack("<" + kind, self.take(struct.calcsize(kind)))[0]

    def skip_value(self, kind):
        if kind == 8:
            self.take(self.number("Q"))
        elif kind == 9:
            of, count = self.number("I"), self.number("Q")
            for _ in range(count):
                self.skip_value(of)
        else:
            self.take(SIZES[kind])


def numbers(kind, raw, count):
    if kind == F32:
        return struct.unpack(f"<{count}f", raw[: 4 * count])
    if kind == F16:
        return struct.unpack(f"<{count}e", raw[: 2 * count])
    halves = struct.unpack(f"<{count}H", raw[: 2 * count])
    return struct.unpack(f"<{count}f", struct.pack(f"<{count}I", *(half << 16 for half in halves)))


def nibbles(values):
    return bytes(low | high << 4 for low, high in zip(values[:16], values[16:]))


def block(kind, values):
    """One block of 32 numbers, rounded as llama.cpp's reference does."""
    largest = max(values, key=abs)
    if kind == Q8_0:
        scale = abs(largest) / 127 or 1.0
        return struct.pack("<e32b", scale, *(round(v / scale) for v in values))
    if kind == Q4_1:
        least = min(values)
        scale = (max(values) - least) / 15 or 1.0
        integers = [min(15, max(0, round((v - least) / scale))) for v in values]
        return struct.pack("<2e", scale, least) + nibbles(integers)
    half = 8 if kind == Q4_0 else 16
    scale = largest / -half or 1.0
    integers = [min(2 * half - 1, max(0, round(v / scale) + half)) for v in values]
    head = struct.pack("<e", scale)
    if kind == Q5_0:
        head += struct.pack("<I", sum((v >> 4) << l for l, v in enumerate(integers)))
    return head + nibbles([v & 15 for v in integers])


def main():
    reader = Reader((HERE / "llama_bias.gguf").read_bytes())
    assert reader.take(4) == b"GGUF" and reader.number("I") == 3
    tensors, keys = reader.number("Q"), reader.number("Q")
    for _ in range(keys):
        reader.take(reader.number("Q"))
        reader.skip_value(reader.number("I"))
    before = reader.data[: reader.at]
    table = []
    for _ in range(tensors):
        name = reader.take(reader.number("Q"))
        shape = [reader.number("Q") for _ in range(reader.number("I"))]
        table.append((name, shape, reader.number("I"), reader.number("Q")))
    start = -(-reader.at // ALIGNMENT) * ALIGNMENT
    head, data, matrices = b"", b"", 0
    for name, shape, kind, offset in table:
        count = 1
        for n in shape:
            count *= n
        raw = reader.data[start + offset :]
        if len(shape) == 2 and shape[0] % 32 == 0:
            values = numbers(kind, raw, count)
            # The embedding, which is also the head, has eight bits, as files of llama.cpp have it.
            kind = Q8_0 if name == b"token_embd.weight" else [Q4_1, Q8_0, Q4_0, Q5_0][matrices % 4]
            matrices += name != b"token_embd.weight"
            raw = b"".join(block(kind, values[at : at + 32]) for at in range(0, count, 32))
        else:
            raw = raw[: count * {F32: 4, F16: 2, BF16: 2}[kind]]
        data += b"\0" * (-len(data) % ALIGNMENT)
        head += struct.pack("<Q", len(name)) + name
        head += struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, len(data))
        data += raw
    file = before + head
    file += b"\0" * (-len(file) % ALIGNMENT) + data
    (HERE / "llama_bias_quantised.gguf").write_bytes(file)


main()
