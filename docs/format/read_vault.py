#!/usr/bin/env python3
"""Prints the rows of one table of a snapshot as JSON lines, ordered by row id.

    read_vault.py VAULT_FOLDER ENVIRONMENT --table TABLE [--snapshot ID|latest] [--identity KEY_FILE]

An independent reader of vault format 1 (docs/design/vault-format.md). Needs the package `zstandard`, and the command `age`
for an encrypted vault. Values come out as the bytes the service sent: JSON is scanned for where values begin and end, and
is never printed again from parsed values. Holds the rows of the table in memory.
"""
import argparse
import hashlib
import json
import pathlib
import struct
import subprocess
import sys
import zstandard

# Finds the end of a JSON value. Numbers stay text, so that none is too long or too large.
SCANNER = json.JSONDecoder(parse_int=str, parse_float=str)


def check(condition, message):
    if not condition:
        sys.exit(f"error: {message}")


def items(text):
    """Raw items of a JSON array, or names and values of an object in turn; without white space between tokens."""
    at = 1
    while at < len(text) - 1:
        end = SCANNER.raw_decode(text, at)[1]
        yield text[at:end]
        at = end + 1


def members(text):
    """Raw (name, value) pairs of a JSON object."""
    tokens = items(text)
    return ((name[1:-1], value) for name, value in zip(tokens, tokens))


def plain_name(stored):
    """A member's name without its escape; None for one of the batch's own words."""
    if not stored.startswith("@") or "." in stored:
        return stored
    return stored[1:] if stored.startswith("@@") else None


def batch_rows(line):
    """The rows of a batch, each a list of raw (name, value) pairs in the order the service sent them."""
    words = {stored: value for stored, value in members(line) if plain_name(stored) is None}
    columns = {plain_name(stored): list(items(value)) for stored, value in members(line) if stored not in words}
    count = int(words["@rows"])
    check(all(len(values) == count for values in columns.values()), "a column does not have one entry per row")
    present = {name: [True] * count for name in columns}
    for stored, value in members(words.get("@absent", "{}")):
        flags = []
        if value.startswith('"'):  # the same list as another column
            flags = present[plain_name(value[1:-1])]
        else:
            for place, length in enumerate(json.loads(value)):
                flags += [place % 2 == 0] * length
        present[plain_name(stored)] = flags + [True] * (count - len(flags))
    order = {int(row): items(names) for row, names in members(words.get("@order", "{}"))}
    for row in range(count):
        listed = [plain_name(name[1:-1]) for name in order.get(row, ())]
        yield [(name, columns[name][row]) for name in listed or columns if listed or present[name][row]]


def segment_parts(plain):
    """The compressed frames of a segment, and the payload of its index frame."""
    count, descriptor, magic = struct.unpack("<IBI", plain[-9:])
    table = len(plain) - 8 * count - 17
    check(magic == 0x8F92EAB1 and descriptor == 0 and count > 0 and table >= 0, "a segment does not end in a seek table")
    check(struct.unpack_from("<II", plain, table) == (0x184D2A5E, 8 * count + 9), "a seek table is malformed")
    frames, offset = [], 0
    for number in range(count):
        size, = struct.unpack_from("<I", plain, table + 8 + 8 * number)
        frames.append(plain[offset:offset + size])
        offset += size
    index = frames.pop()
    check(offset == table and len(index) >= 72, "a seek table does not match the size of its segment")
    check(struct.unpack_from("<II", index) == (0x184D2A5D, len(index) - 8), "an index frame is malformed")
    return frames, index[8:]


def index_ids(index):
    """Row number to row id, for the rows that count: of a row delivered twice only the last delivery is listed."""
    entries, _stored, _filter, directory, blocks = struct.unpack_from("<5I", index, len(index) - 64)
    check(index[-12:-10] == b"\x01\x00" and index[-4:] == b"DVIX", "an index has an unknown version")
    ids = {}
    for block in range(blocks):
        offset, length, count = struct.unpack_from("<3I", index, directory + 28 * block + 16)
        raw = zstandard.ZstdDecompressor().decompress(index[offset:offset + length])
        check(len(raw) == 28 * count, "an index block has the wrong size")
        for n in range(count):
            ids[int.from_bytes(raw[16 * count + n:20 * count:count], "little")] = raw[n:16 * count:count]
    check(len(ids) == entries, "an index does not hold the entries its footer says")
    return ids


def without_age(path, stored, identity):
    if path.suffix != ".age":
        return stored
    check(identity, f"{path.name} is encrypted: name the file with the secret key with --identity")
    try:
        done = subprocess.run(["age", "--decrypt", "--identity", identity], input=stored, stdout=subprocess.PIPE)
    except FileNotFoundError:
        sys.exit(f"error: {path.name} is encrypted: install the command `age`")
    check(done.returncode == 0, f"age could not decrypt {path.name}")
    return done.stdout


def table_rows(folder, table, identity):
    """Row id to row. The newest segment that names an id decides; a tombstone removes it."""
    rows = {}
    for info in (info for info in table["segments"] if info["kind"] != "content"):
        gone, age = ".deleted" * (info["kind"] == "deleted"), ".age" * bool(info.get("encrypted"))
        path = folder / "tables" / table["table"] / f"{info['id']}{gone}.jsonl.zst{age}"
        stored = path.read_bytes()
        check(hashlib.sha256(stored).hexdigest() == info["sha256"], f"{path} does not match the hash in the manifest")
        frames, index = segment_parts(without_age(path, stored, identity))
        lines = (zstandard.ZstdDecompressor().decompress(frame).decode().rstrip("\n") for frame in frames)
        ids = index_ids(index)
        for number, row in enumerate(row for line in lines for row in batch_rows(line)):
            if number in ids:
                rows.pop(ids[number], None) if gone else rows.__setitem__(ids[number], row)
    return rows


parser = argparse.ArgumentParser(description="Print the rows of a table of a snapshot as JSON lines.")
parser.add_argument("vault", type=pathlib.Path)
parser.add_argument("environment")
parser.add_argument("--table", required=True)
parser.add_argument("--snapshot", default="latest")
parser.add_argument("--identity")
args = parser.parse_args()
folder = args.vault / "environments" / args.environment
manifests = {path.name.split(".")[0]: path for path in (folder / "manifests").glob("*.json*")}
path = manifests.get(max(manifests, default="") if args.snapshot == "latest" else args.snapshot)
check(path, f"environment {args.environment} has no such snapshot")
manifest = json.loads(without_age(path, path.read_bytes(), args.identity))
check(manifest["format"] == 1, "this script reads format 1 only")
table = next((table for table in manifest["tables"] if table["table"] == args.table), None)
check(table, f"the snapshot has no table {args.table}")
for _id, row in sorted(table_rows(folder, table, args.identity).items()):
    text = ",".join(f'"{name}":{value}' for name, value in row if name != "@odata.etag")
    sys.stdout.buffer.write(f"{{{text}}}\n".encode())
