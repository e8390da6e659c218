# Few words for daily work; each is a plain command as well.

# What to type first: everything that is cheap.
check:
    cargo fmt --all --check
    cargo clippy --workspace --all-targets --locked -- -D warnings

# Everything the project checks, as CI does.
test:
    tests/run.sh

# Tests of one name, with the Azure Blob emulator beside them.
azure NAME="azure":
    tests/azurite.sh cargo test --workspace --locked {{NAME}}

# Scenarios of one name; each prints its seed when it fails.
scenario NAME="":
    cargo test --locked --test scenarios {{NAME}}

# The folder of golden vaults of a new format; see tests/golden/README.md.
golden:
    DYNAVAULT_MAKE_GOLDEN=1 cargo test --locked --test commands golden::every_format_has_its_golden_vaults

# The whole backup path against curl | zstd.
bench:
    cargo bench --locked --bench backup_path

# The documentation of the crates.
page:
    cargo doc --no-deps --workspace --locked --open
