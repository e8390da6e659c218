//! What a simulator can be told: size, limits, faults.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// How a simulator is built; [`Config::default`] is a small, quiet one.
#[derive(Debug, Clone)]
#[expect(clippy::struct_excessive_bools, reason = "independent switches")]
pub struct Config {
    /// Everything random follows from this number.
    pub seed: u64,
    /// Port on 127.0.0.1; 0 lets the system choose.
    pub port: u16,
    /// About how many rows the standard data set holds, over all tables.
    pub rows: u64,
    /// Service protection limits (dataverse 5.1); `None` switches them off.
    pub limits: Option<Limits>,
    /// Faults to inject.
    pub faults: Faults,
    /// Rows of the generated table `new_big`; 0 leaves the table out.
    pub big_table_rows: u64,
    /// Added to every request to the environment, and counted as its execution time.
    pub latency: Duration,
    /// Execution time to charge per request instead of `latency`.
    pub execution: Option<Duration>,
    /// Life of an access token.
    pub token_lifetime: Duration,
    /// Life of a delta token, also readable as `expirechangetrackingindays` (dataverse 4.5).
    pub change_tracking_expiry_days: u32,
    /// HTTP status of an expired delta token: 400 is expected, 410 was reported (dataverse 4.5).
    pub expired_token_status: u16,
    /// Largest page of a standard table (dataverse 3.1: 5,000); elastic tables stop at 500.
    pub page_size_max: usize,
    /// Compress answers for clients that accept gzip.
    pub gzip: bool,
    /// Send `x-ms-dop-hint` with this value; `None` leaves the header out, which also happens in reality (dataverse 1.3).
    pub dop_hint: Option<u32>,
    /// Secret of the application users.
    pub secret: String,
    /// Which environment of the tenant it is. Another one has an organization of its own and the same people, units,
    /// teams and currencies under other ids.
    pub environment: u64,
    /// Fill only what every environment has: organization, users, units, teams and currencies, as many as `rows` asks.
    pub empty: bool,
    /// Run the custom plug-in and the cloud flows of the environment unless a request leaves them out (dataverse 6.10).
    pub custom_logic: bool,
    /// Keep deleted rows, and offer `Restore` (dataverse 6.15).
    pub recycle_bin: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            seed: 1,
            port: 0,
            rows: 2_000,
            limits: None,
            faults: Faults::default(),
            big_table_rows: 0,
            latency: Duration::ZERO,
            execution: None,
            token_lifetime: Duration::from_secs(3_600),
            change_tracking_expiry_days: 7,
            expired_token_status: 400,
            page_size_max: 5_000,
            gzip: true,
            dop_hint: Some(8),
            secret: "simulator-secret".to_owned(),
            environment: 0,
            empty: false,
            custom_logic: true,
            recycle_bin: false,
        }
    }
}

/// Service protection limits of one application user (dataverse 5.1).
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default)]
pub struct Limits {
    /// Requests in a window.
    pub requests: u64,
    /// Combined execution time in a window.
    #[serde(rename = "execution_ms", with = "milliseconds")]
    pub execution: Duration,
    /// Requests at the same time.
    pub concurrency: usize,
    /// Length of the sliding window.
    #[serde(rename = "window_ms", with = "milliseconds")]
    pub window: Duration,
    /// Send the `x-ms-ratelimit-*` headers.
    pub headers: bool,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            requests: 6_000,
            execution: Duration::from_secs(1_200),
            concurrency: 52,
            window: Duration::from_secs(300),
            headers: true,
        }
    }
}

/// Durations as whole milliseconds in the control interface.
mod milliseconds {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(value: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(value.as_millis() as u64)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        u64::deserialize(deserializer).map(Duration::from_millis)
    }
}

/// One way to misbehave.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FaultKind {
    /// The connection closes after part of the body.
    CutBody,
    /// Status 200 and a matching Content-Length, but the JSON ends early, or a file that has its size in a header, or the
    /// text of a note, whose size is in its row.
    TruncatedJson,
    /// 500 with 0x80040216.
    ServerError,
    /// 502 with an HTML body.
    BadGateway,
    /// 503 without a body.
    Unavailable,
    /// 504 without a body.
    GatewayTimeout,
    /// The body trickles.
    SlowBody,
    /// All access tokens are revoked; this request gets 401.
    TokenRevoked,
    /// 429 although no limit was reached.
    Throttled,
    /// 429 without a Retry-After header.
    ThrottledSilently,
    /// A page whose next link is the link that was asked for: a loop. Only on pages reached by a next link.
    RepeatedLink,
    /// A page without rows but with a next link, which is legal (dataverse 3.1).
    EmptyPage,
    /// Status 200 with an HTML body.
    HtmlSuccess,
    /// The schema changes just before this request is answered.
    SchemaChanged,
    /// All outstanding next links become invalid (0x8004112a).
    LinksRejected,
    /// A last page with neither next link nor delta link (dataverse 4.6). Only on last pages of tracked reads.
    LostDeltaLink,
    /// The page begins with the last row of the page before it. Only on pages reached by a next link.
    RepeatedRow,
    /// The connection closes without an answer, and nothing was done.
    CutBefore,
    /// The connection closes without an answer, although everything was done.
    CutAfter,
    /// One part of a batch, the one in the middle, gets 429 and is not done; other requests are left alone.
    ThrottledPart,
}

impl FaultKind {
    /// Kinds that matter to writes above all; a seeded plan tries them after the others.
    pub const WRITING: [Self; 3] = [Self::CutBefore, Self::CutAfter, Self::ThrottledPart];

    /// Every kind that reading can meet, in the order in which a seeded plan tries them.
    pub const ALL: [Self; 17] = [
        Self::CutBody,
        Self::TruncatedJson,
        Self::ServerError,
        Self::BadGateway,
        Self::Unavailable,
        Self::GatewayTimeout,
        Self::SlowBody,
        Self::TokenRevoked,
        Self::Throttled,
        Self::ThrottledSilently,
        Self::RepeatedLink,
        Self::EmptyPage,
        Self::HtmlSuccess,
        Self::SchemaChanged,
        Self::LinksRejected,
        Self::LostDeltaLink,
        Self::RepeatedRow,
    ];
}

/// Which faults to inject, and when. The same plan and request numbers give the same faults.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Faults {
    /// Seed of the chances below.
    pub seed: u64,
    /// Chance per thousand requests, for each kind.
    pub per_mille: BTreeMap<FaultKind, u16>,
    /// Faults of exact requests. The first request to the environment after the plan was set is number 1; requests
    /// for tokens and to the control interface have no number.
    pub at: Vec<(u64, FaultKind)>,
    /// Faults of exact requests of one table.
    pub on: Vec<TableFault>,
    /// Faults of exact writes of one table; `$batch` stands for batches.
    pub on_write: Vec<TableFault>,
    /// At most this many faults by chance, so that a run comes to an end.
    pub most: Option<u64>,
    /// The token endpoint answers 503 this many times.
    pub token_unavailable: u32,
}

/// The fault of one page of one table, however the requests of other tables fall around it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TableFault {
    /// Logical name.
    pub table: String,
    /// Which request for rows or changes of that table, or which write, since the plan was set; the first is 1.
    pub nth: u64,
    /// What happens to it.
    pub kind: FaultKind,
}
