#!/usr/bin/env python3
"""Prints one line for each crate: what of its code the tests execute.

    coverage.py target/coverage.json [CRATE...]

The file is the summary that `cargo llvm-cov --json --summary-only` writes. Files of tests do not count; a module of tests at the end of a
file does.
"""

import json
import re
import sys
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TESTS = re.compile(r"(^|/)(tests/|benches/|[^/]*tests?\.rs$|[^/]*_tests/|testing\.rs$)")
KINDS = ("lines", "functions", "regions")


def crate_of(path: Path) -> str | None:
    """Returns the crate that a file belongs to, or None for a file of tests or of another project."""
    try:
        below = path.resolve().relative_to(ROOT)
    except ValueError:
        return None
    if TESTS.search(below.as_posix()):
        return None
    parts = below.parts
    return parts[1] if parts[0] in ("src", "models") else parts[0]


def main(report: str, *crates: str) -> None:
    sums = defaultdict(lambda: {kind: [0, 0] for kind in KINDS})
    files = defaultdict(int)
    for file in json.loads(Path(report).read_text())["data"][0]["files"]:
        crate = crate_of(Path(file["filename"]))
        if crate is None or crates and crate not in crates:
            continue
        files[crate] += 1
        for kind in KINDS:
            summary = file["summary"][kind]
            sums[crate][kind][0] += summary["covered"]
            sums[crate][kind][1] += summary["count"]
    print("| crate | files | lines | " + " | ".join(f"{kind} %" for kind in KINDS) + " |")
    print("|---|---|---|" + "---|" * len(KINDS))
    for crate in sorted(sums):
        of = sums[crate]
        shares = (f"{100 * of[kind][0] / max(of[kind][1], 1):.1f}" for kind in KINDS)
        print(f"| {crate} | {files[crate]} | {of['lines'][1]} | " + " | ".join(shares) + " |")


if __name__ == "__main__":
    main(*sys.argv[1:])
