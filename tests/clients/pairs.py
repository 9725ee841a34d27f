"""Opens exported files of pairs as TRL's users do: python pairs.py DIR. With --check it only tests that pyarrow is installed.

DIR has expected.json with the expected rows of each file of pairs.
"""

import json
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.json
import pyarrow.parquet

if sys.argv[1] == "--check":
    sys.exit(0)

folder = Path(sys.argv[1])
expected = json.loads((folder / "expected.json").read_text())
assert len(expected) >= 3, expected
for name, rows in expected.items():
    path = folder / name
    if path.suffix == ".parquet":
        table = pa.parquet.read_table(path)
    elif path.suffix == ".jsonl":
        table = pa.json.read_json(path)
    else:
        table = pa.Table.from_pylist(json.loads(path.read_text()))
    assert table.to_pylist() == rows, (name, table.to_pylist(), rows)
    side = table.schema.field("prompt").type
    if isinstance(rows[0]["prompt"], str):
        assert pa.types.is_string(side), (name, side)
    else:
        # TRL's form of a conversation is a list of structs with a role and a content.
        assert pa.types.is_list(side) and {field.name for field in side.value_type} == {"role", "content"}, (name, side)
