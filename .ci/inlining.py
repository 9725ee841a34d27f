"""Compares the instructions of steps of two builds: `release`, and with thin link-time optimisation."""

import json
import os
import re
import subprocess
import sys

# The most that a build without link-time optimisation may take.
ALLOWED = 1.02
# Prompt and new tokens of the calls, and the work that is the difference to the first.
CALLS = {"prefill of 128 tokens": (256, 1), "64 decoding steps": (128, 65)}
FIRST = (128, 1)


def build(target: str, lto: str) -> str:
    """Builds the program in a folder of its own; returns its path."""
    environment = os.environ | {"CARGO_TARGET_DIR": f"{target}/inlining-{lto}", "CARGO_PROFILE_BENCH_LTO": lto}
    command = "cargo bench --package engine --bench instructions --no-run --message-format json".split()
    messages = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
    built = (json.loads(line) for line in messages.splitlines() if line.startswith("{"))
    return next(one["executable"] for one in built if one.get("executable"))


def instructions(program: str, call: tuple[int, int]) -> int:
    """Returns the instructions of one call."""
    command = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", program, *map(str, call)]
    said = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=True).stderr
    return int(re.search(r"Collected : (\d+)", said).group(1))


def main() -> None:
    target = sys.argv[1]
    programs = [build(target, lto) for lto in ("false", "thin")]
    start = [instructions(program, FIRST) for program in programs]
    worst = 0.0
    for name, call in CALLS.items():
        split, whole = (instructions(program, call) - first for program, first in zip(programs, start))
        worst = max(worst, split / whole)
        print(f"{name}: {split:,} instructions, {whole:,} with link-time optimisation, ratio {split / whole:.4f}")
    if worst > ALLOWED:
        sys.exit(f"more than {ALLOWED} times as many")


main()
