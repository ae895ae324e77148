"""Rows to fuzz readers with: texts in many scripts, corruptions of a line, and writers."""

from __future__ import annotations

import csv
import json
import random
import string
from pathlib import Path
from typing import Any

from qwen_task_heads.data.examples import PairExample

LETTERS = string.ascii_letters + string.digits + " éß漢字かなक🙂'\"\\,:;!?%-–<>&\t|"


def a_text(rng: random.Random, *, longest: int = 60) -> str:
    return "t" + "".join(rng.choices(LETTERS, k=rng.randrange(longest))).strip() + "."


def dumps(row: dict[str, Any]) -> bytes:
    return json.dumps(row, ensure_ascii=False).encode()


def pair_to_row(pair: PairExample) -> dict[str, Any]:
    """Return a row that `read_pairs` reads back, equal up to `source`, the place of the row."""
    row: dict[str, Any] = {"chosen": pair.chosen, "rejected": pair.rejected}
    if pair.prompt:
        row["prompt"] = pair.prompt
    if pair.margin is not None:
        row["margin"] = pair.margin
    if pair.preference is not None:
        row["preference"] = pair.preference
    if pair.weight != 1.0:
        row["weight"] = pair.weight
    if pair.group:
        row["group_id"] = pair.group
    return row


# Each converts a valid row to the bytes of a line that must be an error. The first column is a text.


def cut(rng: random.Random, row: dict[str, Any]) -> bytes:
    line = dumps(row)
    return line[: rng.randrange(1, len(line) - 1)].strip() or b"{"


def raw_byte(rng: random.Random, row: dict[str, Any]) -> bytes:
    line = dumps(row)
    place = rng.randrange(1, len(line))
    return line[:place] + rng.choice([b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xfe"]) + line[place:]


def surrogate(rng: random.Random, row: dict[str, Any]) -> bytes:
    return json.dumps(row | {rng.choice([next(iter(row)), "extra"]): "a \ud83d b"}).encode()


def twice(rng: random.Random, row: dict[str, Any]) -> bytes:
    again = f', "{next(iter(row))}": "again"}}'.encode()
    return dumps(row)[:-1] + rng.choice([again, b', "extra": {"a": 1, "a": 2}}'])


def no_object(rng: random.Random, row: dict[str, Any]) -> bytes:
    return rng.choice(
        [b"1", b"null", b'"text"', b"[]", dumps(row) + b"]", b"[" + dumps(row) + b"]", b"9" * 5000]
    )


def missing(rng: random.Random, row: dict[str, Any]) -> bytes:
    """Without one of the first two columns, which every row needs."""
    del row[rng.choice([*row][:2])]
    return dumps(row)


MUTATIONS = (cut, raw_byte, surrogate, twice, no_object, missing)


def nested(rng: random.Random, row: dict[str, Any]) -> bytes:
    return dumps(row)[:-1] + b', "extra": ' + rng.choice([b"[", b'{"a":']) * 100_000 + b"}"


def corrupt(rng: random.Random, content: bytes) -> bytes:
    """Return a file with a few changed bytes, truncated in half of all cases."""
    corrupted = bytearray(content)
    for _ in range(rng.randrange(1, 4)):
        corrupted[rng.randrange(len(corrupted))] = rng.randrange(256)
    if rng.random() < 0.5:
        del corrupted[rng.randrange(len(corrupted)) :]
    return bytes(corrupted)


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows in the format of the suffix; .txt has only `text` and `label`."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    if path.suffix == ".jsonl":
        path.write_bytes(b"".join(dumps(row) + b"\n" for row in rows))
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows), encoding="utf-8")
    elif path.suffix == ".txt":
        path.write_text("".join(f"{row['text']}\t{row['label']}\n" for row in rows), encoding="utf-8")
    elif path.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        columns = {name: [row.get(name) for row in rows] for name in names}
        for name, values in columns.items():  # a column of Parquet has one type
            if len({type(value) for value in values if value is not None}) > 1:
                columns[name] = [None if value is None else str(value) for value in values]
        pq.write_table(pa.table(columns), path)
    else:
        with path.open("w", encoding="utf-8", newline="") as stream:
            writer = csv.DictWriter(stream, names, delimiter="," if path.suffix == ".csv" else "\t")
            writer.writeheader()
            writer.writerows(
                {name: json.dumps(v) if isinstance(v, list) else v for name, v in row.items()} for row in rows
            )
