//! The schema, as a list of steps that are never edited once released.

use rusqlite::Connection;

/// Each step brings the file from version `index` to `index + 1`.
const STEPS: &[&str] = &[
    "
    -- History: one row per run.
    CREATE TABLE run (
        run          TEXT PRIMARY KEY,
        kind         TEXT NOT NULL,
        environment  TEXT NOT NULL,
        status       TEXT NOT NULL,
        snapshot     TEXT,
        started      TEXT NOT NULL,
        finished     TEXT,
        resumed_from TEXT,
        error        TEXT,
        requests     INTEGER NOT NULL DEFAULT 0,
        throttled    INTEGER NOT NULL DEFAULT 0,
        bytes_raw    INTEGER NOT NULL DEFAULT 0,
        bytes_stored INTEGER NOT NULL DEFAULT 0,
        report       TEXT
    ) STRICT;
    CREATE INDEX run_by_environment ON run (environment, started);

    -- History: one row per table of a run.
    CREATE TABLE run_table (
        run          TEXT NOT NULL REFERENCES run (run) ON DELETE CASCADE,
        table_name   TEXT NOT NULL,
        mode         TEXT NOT NULL,
        status       TEXT NOT NULL,
        rows_read    INTEGER NOT NULL,
        rows_stored  INTEGER NOT NULL,
        created      INTEGER NOT NULL,
        changed      INTEGER NOT NULL,
        deleted      INTEGER NOT NULL,
        live_rows    INTEGER NOT NULL,
        bytes_stored INTEGER NOT NULL,
        requests     INTEGER NOT NULL,
        reason       TEXT,
        PRIMARY KEY (run, table_name)
    ) STRICT, WITHOUT ROWID;

    -- Snapshots that exist in the vault. The manifest itself is kept for the newest one of an environment.
    CREATE TABLE snapshot (
        environment TEXT NOT NULL,
        snapshot    TEXT NOT NULL,
        run         TEXT NOT NULL,
        created     TEXT NOT NULL,
        whole       INTEGER NOT NULL,
        rows        INTEGER NOT NULL,
        encrypted   INTEGER NOT NULL,
        sha256      TEXT NOT NULL,
        manifest    TEXT,
        PRIMARY KEY (environment, snapshot)
    ) STRICT, WITHOUT ROWID;

    -- Tables of the snapshots: what is the age of the last good backup of a table.
    CREATE TABLE snapshot_table (
        environment TEXT NOT NULL,
        snapshot    TEXT NOT NULL,
        table_name  TEXT NOT NULL,
        status      TEXT NOT NULL,
        mode        TEXT NOT NULL,
        captured_by TEXT NOT NULL,
        live_rows   INTEGER NOT NULL,
        last_read   TEXT NOT NULL,
        PRIMARY KEY (environment, snapshot, table_name)
    ) STRICT, WITHOUT ROWID;

    -- Segments, with the snapshot that brought them.
    CREATE TABLE segment (
        environment  TEXT NOT NULL,
        table_name   TEXT NOT NULL,
        segment      TEXT NOT NULL,
        kind         TEXT NOT NULL,
        snapshot     TEXT NOT NULL,
        rows         INTEGER NOT NULL,
        bytes_raw    INTEGER NOT NULL,
        bytes_stored INTEGER NOT NULL,
        sha256       TEXT NOT NULL,
        PRIMARY KEY (environment, table_name, segment)
    ) STRICT, WITHOUT ROWID;

    -- Delta tokens, each adopted from a committed manifest.
    CREATE TABLE token (
        environment TEXT NOT NULL,
        table_name  TEXT NOT NULL,
        snapshot    TEXT NOT NULL,
        link        TEXT NOT NULL,
        given       TEXT NOT NULL,
        PRIMARY KEY (environment, table_name)
    ) STRICT, WITHOUT ROWID;

    -- The snapshot being made, at most one per environment.
    CREATE TABLE draft (
        environment TEXT PRIMARY KEY,
        snapshot    TEXT NOT NULL,
        run         TEXT NOT NULL,
        started     TEXT NOT NULL,
        progressed  TEXT NOT NULL,
        manifest    TEXT,
        object      BLOB,
        encrypted   INTEGER,
        sha256      TEXT
    ) STRICT;

    -- How far each table of the draft has come.
    CREATE TABLE checkpoint (
        environment TEXT NOT NULL REFERENCES draft (environment) ON DELETE CASCADE,
        table_name  TEXT NOT NULL,
        phase       TEXT NOT NULL,
        link        TEXT,
        rows        INTEGER NOT NULL,
        progress    TEXT NOT NULL,
        written     TEXT NOT NULL,
        PRIMARY KEY (environment, table_name)
    ) STRICT, WITHOUT ROWID;

    -- Durable segments of the draft, in order.
    CREATE TABLE draft_segment (
        environment TEXT NOT NULL REFERENCES draft (environment) ON DELETE CASCADE,
        table_name  TEXT NOT NULL,
        sequence    INTEGER NOT NULL,
        info        TEXT NOT NULL,
        PRIMARY KEY (environment, table_name, sequence)
    ) STRICT, WITHOUT ROWID;

    -- Local files of (row id, row hash) that mirror the indexes of a table's committed segments, oldest first.
    CREATE TABLE state_file (
        environment TEXT NOT NULL,
        table_name  TEXT NOT NULL,
        kind        TEXT NOT NULL,
        sequence    INTEGER NOT NULL,
        file        TEXT NOT NULL,
        entries     INTEGER NOT NULL,
        PRIMARY KEY (environment, table_name, kind, sequence)
    ) STRICT, WITHOUT ROWID;
",
    "
    -- The vault that the working half of an environment belongs to.
    CREATE TABLE vault (
        environment TEXT PRIMARY KEY,
        address     TEXT NOT NULL,
        id          TEXT
    ) STRICT, WITHOUT ROWID;

    -- Segments that a check found damaged: nothing is built upon them.
    CREATE TABLE damaged_segment (
        environment TEXT NOT NULL,
        table_name  TEXT NOT NULL,
        segment     TEXT NOT NULL,
        PRIMARY KEY (environment, table_name, segment)
    ) STRICT, WITHOUT ROWID;
",
    "
    -- Restores and undos: which plan a run carries out. Plan and outcomes themselves are in the vault.
    CREATE TABLE restore (
        run         TEXT PRIMARY KEY REFERENCES run (run) ON DELETE CASCADE,
        kind        TEXT NOT NULL,
        environment TEXT NOT NULL,
        target      TEXT NOT NULL,
        digest      TEXT NOT NULL,
        plan        TEXT NOT NULL,
        ops         INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX restore_by_digest ON restore (digest);

    -- Operations of a restore: written before they are sent (state 0), and again when their answer is known
    -- (1 done, 2 unchanged, 3 conflict, 4 rejected).
    CREATE TABLE restore_op (
        run     TEXT NOT NULL REFERENCES restore (run) ON DELETE CASCADE,
        n       INTEGER NOT NULL,
        state   INTEGER NOT NULL,
        code    TEXT,
        message TEXT,
        before  TEXT,
        PRIMARY KEY (run, n)
    ) STRICT, WITHOUT ROWID;
",
];

/// Newest version this program knows.
pub(crate) const VERSION: u32 = STEPS.len() as u32;

/// Brings an open file to the newest version; gives the version found if that is newer.
pub(crate) fn migrate(connection: &mut Connection) -> Result<Option<u32>, rusqlite::Error> {
    let found: u32 = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    if found > VERSION {
        return Ok(Some(found));
    }
    for (index, step) in STEPS.iter().enumerate().skip(found as usize) {
        let transaction = connection.transaction()?;
        transaction.execute_batch(step)?;
        transaction.pragma_update(None, "user_version", index as u32 + 1)?;
        transaction.commit()?;
    }
    Ok(None)
}
