#!/usr/bin/env bash
# Everything the project checks, from a clean checkout on a fresh machine: needs cargo, and installs the rest below
# target/tools (Azurite, Python packages) or, as root on Debian, with apt-get (zstd, curl, age, node, python3).
# Stops at the first failure. Leaves no process behind.
set -euo pipefail
cd "$(dirname "$0")/.."
export CARGO_TERM_COLOR=${CARGO_TERM_COLOR:-never}

tools=$PWD/target/tools
python_packages=(zstandard==0.25.0 duckdb==2.0.0)
step_name=
step_start=$SECONDS

step_end() {
    [ -z "$step_name" ] || echo "── $step_name: $((SECONDS - step_start)) s"
}
step() {
    step_end
    step_name=$1
    step_start=$SECONDS
    echo
    echo "══ $step_name"
}
finish() {
    local code=$?
    if [ "$code" != 0 ]; then
        echo "══ FAILED in: $step_name (exit code $code)"
    fi
}
trap finish EXIT
trap 'exit 130' INT TERM

refreshed=
# COMMAND PACKAGE…: installs Debian packages when a command is missing.
need() {
    local command=$1
    shift
    command -v "$command" >/dev/null && return
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        echo "error: $command is missing; install it ($*)" >&2
        exit 1
    fi
    [ -n "$refreshed" ] || DEBIAN_FRONTEND=noninteractive apt-get -qq update
    refreshed=yes
    DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends "$@" >/dev/null
}

step "tools"
if ! command -v cargo >/dev/null; then
    echo "error: cargo is missing; install the Rust toolchain (rustup.rs or your distribution)" >&2
    exit 1
fi
need zstd zstd
need curl curl ca-certificates
need age age
need dbus-daemon dbus-daemon dbus-bin
need dbus-send dbus-bin
need gnome-keyring-daemon gnome-keyring
need node nodejs npm
need npm npm
need python3 python3 python3-venv
mkdir -p "$tools"
if ! "$tools/venv/bin/python" -c 'import duckdb, zstandard' 2>/dev/null; then
    rm -rf "$tools/venv"
    if ! python3 -m venv "$tools/venv" 2>/dev/null; then
        # Debian keeps this part of Python in a package of its own.
        need python3-venv-is-missing python3-venv
        python3 -m venv "$tools/venv"
    fi
    "$tools/venv/bin/pip" install --quiet --disable-pip-version-check "${python_packages[@]}"
fi
cargo --version
rustc --version
node --version

step "cargo fmt"
cargo fmt --all --check

step "cargo clippy"
cargo clippy --workspace --all-targets --locked -- -D warnings

step "cargo test, with the Azure Blob emulator"
tests/azurite.sh cargo test --workspace --locked

step "service limits: rates, measured with nothing beside them"
DYNAVAULT_MEASURE_RATES=1 cargo test --locked --test scenarios -- limits:: --skip restore_limits --test-threads 1

step "cargo doc"
RUSTDOCFLAGS="-D warnings" cargo doc --no-deps --workspace --locked

step "cargo build"
cargo build --locked

step "the vault is open: reader, zstd, DuckDB"
tests/format.sh

step "demo"
cargo run --quiet --locked -- demo

step_end
echo
echo "everything passed in $SECONDS s"
