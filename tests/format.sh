#!/usr/bin/env bash
# The vault is open: what `export` prints can be had from the files alone. Makes vaults with the program against its
# simulator (everything, then an increment) and compares, for every table of both snapshots,
#
#   - the reader docs/format/read_vault.py with `export`, byte for byte, for a plain and for an encrypted vault;
#   - `zstd -dc` of every segment: lines of JSON, each a batch;
#   - DuckDB through docs/format/duckdb_view.sql with `export`.
#
# Needs zstd, curl, age, and python3 with the packages of tests/run.sh; PYTHON names the interpreter.
set -euo pipefail
cd "$(dirname "$0")/.."

root=$PWD
program=${DYNAVAULT:-$root/target/debug/dynavault}
python=${PYTHON:-$root/target/tools/venv/bin/python}
[ -x "$program" ] || cargo build --locked --quiet

work=$(mktemp -d)
simulator_pid=
finish() {
    if [ -n "$simulator_pid" ]; then
        kill "$simulator_pid" 2>/dev/null || true
        wait "$simulator_pid" 2>/dev/null || true
    fi
    rm -rf "$work"
}
trap finish EXIT
trap 'exit 130' INT TERM
fail() {
    echo "error: $*" >&2
    exit 1
}

"$program" simulator serve --rows 400 --seed 3 --write-config "$work" >"$work/simulator.json" 2>"$work/simulator.log" &
simulator_pid=$!
for _ in $(seq 300); do
    # The document ends with a line of its own.
    grep -qs '^}' "$work/simulator.json" && break
    kill -0 "$simulator_pid" 2>/dev/null || fail "the simulator did not start: $(cat "$work/simulator.log")"
    sleep 0.1
done
url=$(sed -n 's/^ *"url": "\(.*\)".*/\1/p' "$work/simulator.json")
[ -n "$url" ] || fail "the simulator did not say where it is"

# The same environment into a second, encrypted vault.
recipient=$("$program" --quiet key generate "$work/restore.key" 2>/dev/null)
sed -e 's#/vault"$#/encrypted"#' -e 's#catalog\.db#encrypted.db#' \
    -e "s#^\[vault\]#&\nrecipients = [\"$recipient\"]\nidentity_file = \"$work/restore.key\"#" \
    "$work/dynavault.toml" >"$work/encrypted.toml"

backup() {
    for config in dynavault encrypted; do
        local code=0
        "$program" --config "$work/$config.toml" --quiet backup 2>"$work/talk" || code=$?
        # The simulator has tables that nobody can read: 3 is what is expected of it.
        [ "$code" = 3 ] || fail "the backup of $config ended with $code: $(cat "$work/talk")"
    done
}
backup
curl --fail --silent --show-error --output /dev/null --request POST "$url/_simulator/edit?seed=7&changes=150"
backup

snapshots() { # CONFIG
    "$program" --config "$work/$1.toml" --json snapshot list | sed -n 's/^ *"snapshot": "\(.*\)".*/\1/p'
}
tables() { # CONFIG SNAPSHOT
    "$program" --config "$work/$1.toml" --json snapshot show --snapshot "$2" >"$work/manifest.json"
    "$python" -c 'import json, sys; [print(table["table"]) for table in json.load(open(sys.argv[1]))["tables"]]' "$work/manifest.json"
}

compared=0
viewed=0
for config in dynavault encrypted; do
    vault=$work/vault
    identity=()
    if [ "$config" = encrypted ]; then
        vault=$work/encrypted
        identity=(--identity "$work/restore.key")
    fi
    found=0
    known=$(snapshots "$config")
    for snapshot in $known; do
        found=$((found + 1))
        captured=$(tables "$config" "$snapshot")
        for table in $captured; do
            "$program" --config "$work/$config.toml" --quiet export --table "$table" --snapshot "$snapshot" >"$work/export.jsonl"
            "$python" docs/format/read_vault.py "$vault" simulated --table "$table" --snapshot "$snapshot" "${identity[@]}" \
                >"$work/read.jsonl"
            cmp "$work/export.jsonl" "$work/read.jsonl" || fail "the reader and export differ: $config, $snapshot, $table"
            compared=$((compared + 1))
            if [ "$config" = dynavault ]; then
                code=0
                "$python" docs/format/check_duckdb.py "$vault" simulated "$table" "$work/export.jsonl" --snapshot "$snapshot" \
                    >"$work/duckdb" 2>&1 || code=$?
                case $code in
                0) viewed=$((viewed + 1)) ;;
                # It says itself which tables the view cannot be used for.
                2) cat "$work/duckdb" ;;
                *) fail "DuckDB and export differ: $snapshot: $(cat "$work/duckdb")" ;;
                esac
            fi
        done
    done
    [ "$found" = 2 ] || fail "$config has $found snapshots"
done

segments=0
while IFS= read -r -d '' segment; do
    zstd -dcq "$segment" >"$work/lines.jsonl"
    "$python" -c '
import json, sys
rows = [json.loads(line)["@rows"] for line in open(sys.argv[1], encoding="utf-8")]
sys.exit(not rows or min(rows) < 1)' "$work/lines.jsonl" || fail "$segment is not lines of JSON batches"
    segments=$((segments + 1))
done < <(find "$work/vault" -name '*.jsonl.zst' -print0)

[ "$compared" -ge 100 ] && [ "$viewed" -ge 40 ] && [ "$segments" -ge 40 ] ||
    fail "too little was compared: $compared exports, $viewed views, $segments segments"
echo "$compared exports equal the reader's rows, $viewed the DuckDB view's; $segments segments are JSON to zstd -dc"
