#!/usr/bin/env python3
"""Checks that the DuckDB view of duckdb_view.sql gives the rows that `dynavault export` gives.

    check_duckdb.py VAULT_FOLDER ENVIRONMENT TABLE EXPORT.jsonl [--snapshot ID]

EXPORT.jsonl is the output of `dynavault export ENVIRONMENT --table TABLE --snapshot ID`. Needs the package `duckdb` and a
vault that is not encrypted. Both sides are read by DuckDB with the same types, so that what it makes of a number is the same
on both; every column that occurs in the export is compared. Exit code 0: equal, 1: not equal, 2: cannot be compared.
"""
import argparse
import json
import pathlib
import re
import sys

import duckdb

VIEW = pathlib.Path(__file__).with_name("duckdb_view.sql")


def quoted(text):
    return "'" + str(text).replace("'", "''") + "'"


def view_sql(folder, snapshot, table, key, columns):
    """The documented view, with its four lines and its key replaced."""
    types = ", ".join(f"{quoted(name)}: 'VARCHAR[]'" for name in [*columns, "id"])
    settings = {"folder": quoted(folder), "snapshot": quoted(snapshot), "logical_name": quoted(table), "columns": f"{{{types}}}"}
    text = VIEW.read_text()
    for name, value in settings.items():
        text, found = re.subn(f"(?m)^SET VARIABLE {name} = .*;$", lambda _: f"SET VARIABLE {name} = {value};", text)
        if found != 1:
            sys.exit(f"{VIEW.name} has {found} lines that set {name}")
    setting, view = text.split("-- 3.")
    return setting + "-- 3." + view.replace("accountid", f'"{key}"')


def main():
    parser = argparse.ArgumentParser(description="Compare the DuckDB view of a table with its export.")
    parser.add_argument("vault", type=pathlib.Path)
    parser.add_argument("environment")
    parser.add_argument("table")
    parser.add_argument("export", type=pathlib.Path)
    parser.add_argument("--snapshot")
    args = parser.parse_args()
    folder = args.vault / "environments" / args.environment
    snapshot = args.snapshot or max(path.stem for path in (folder / "manifests").glob("*.json"))
    manifest = json.loads((folder / "manifests" / f"{snapshot}.json").read_text())
    table = next(table for table in manifest["tables"] if table["table"] == args.table)
    if len(table["key"]) != 1:
        print(f"{args.table}: its key has several columns, which the view cannot match with tombstones")
        return 2
    if not table["segments"]:
        print(f"{args.table}: it has no segments, so there is nothing for DuckDB to read")
        return 2
    columns = {name: None for name in table["key"]}
    with args.export.open(encoding="utf-8") as lines:
        for line in lines:
            columns.update(dict.fromkeys(json.loads(line)))
    reserved = columns.keys() & {"id", "segment", "frame", "place", "gone"}
    if reserved:
        print(f"{args.table}: the view uses names of columns of this table: {', '.join(sorted(reserved))}")
        return 2
    connection = duckdb.connect()
    connection.execute(view_sql(folder, snapshot, args.table, table["key"][0], columns))
    types = ", ".join(f"{quoted(name)}: 'VARCHAR'" for name in columns)
    connection.execute(
        f"CREATE TEMP TABLE expected AS FROM read_json({quoted(args.export)}, columns = {{{types}}}, "
        "format = 'newline_delimited', maximum_object_size = 67108864)")
    names = ", ".join('"' + name.replace('"', '""') + '"' for name in columns)
    connection.execute(f"CREATE TEMP TABLE found AS SELECT {names} FROM live")
    expected, found = (connection.execute(f"SELECT count(*) FROM {side}").fetchone()[0] for side in ("expected", "found"))
    missing, extra = (
        connection.execute(f"SELECT count(*) FROM (SELECT {names} FROM {one} EXCEPT ALL SELECT {names} FROM {other})").fetchone()[0]
        for one, other in (("expected", "found"), ("found", "expected")))
    print(f"{args.table}: {expected} rows exported, {found} in the view, {len(columns)} columns; "
          f"{missing} only in the export, {extra} only in the view")
    return 0 if missing == extra == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
