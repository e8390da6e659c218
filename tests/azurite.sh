#!/usr/bin/env bash
# Runs a command with the Azure Blob emulator beside it:
#
#     tests/azurite.sh cargo test --test commands azure
#
# Installs Azurite below target/tools when it is not there. It keeps everything in memory, listens on a free port of
# loopback, and is stopped when the command ends.
set -euo pipefail
cd "$(dirname "$0")/.."

version=3.37.0
tools=$PWD/target/tools
emulator=$tools/node_modules/.bin/azurite-blob

if ! grep -qs "\"version\": \"$version\"" "$tools/node_modules/azurite/package.json"; then
    echo "installing azurite $version into target/tools" >&2
    mkdir -p "$tools"
    npm install --prefix "$tools" --no-audit --no-fund --no-save --loglevel=error "azurite@$version" >&2
fi

log=$(mktemp)
emulator_pid=
finish() {
    if [ -n "$emulator_pid" ]; then
        kill "$emulator_pid" 2>/dev/null || true
        wait "$emulator_pid" 2>/dev/null || true
    fi
    rm -f "$log"
}
trap finish EXIT
trap 'exit 130' INT TERM

"$emulator" --inMemoryPersistence --disableTelemetry --silent --blobHost 127.0.0.1 --blobPort 0 >"$log" 2>&1 &
emulator_pid=$!

address=
for _ in $(seq 300); do
    address=$(sed -n 's/.*successfully listens on \(http:[^ ]*\).*/\1/p' "$log")
    [ -n "$address" ] && break
    kill -0 "$emulator_pid" 2>/dev/null || break
    sleep 0.1
done
if [ -z "$address" ]; then
    echo "azurite did not start:" >&2
    cat "$log" >&2
    exit 1
fi

DYNAVAULT_AZURITE=$address/devstoreaccount1 "$@"
