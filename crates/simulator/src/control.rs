//! The controls over HTTP, for a simulator served to other processes.
//!
//! Everything lies below `/_simulator/` and needs no token: the simulator listens on loopback only.
//!
//! | request | does |
//! |---|---|
//! | `GET info` | url, authority, tenant, clients, secret |
//! | `GET tables`, `GET rows/{table}`, `GET files` | the oracle; rows and files as NDJSON |
//! | `GET stats`, `POST reset-stats` | counts |
//! | `POST edit?seed=&changes=`, `POST change-schema?seed=` | change rows, change the schema |
//! | `POST faults`, `POST limits` (JSON, `null` for none) | set a plan, set limits |
//! | `POST expire-delta-tokens`, `revoke-tokens`, `reject-links`, `expire-secret` | make things invalid |
//! | `POST wipe` | remove every row a customer made |
//! | `POST take-privilege?name=`, `POST give-privilege?name=` | privileges to write, by name |
//! | `POST deny?table=`, `POST allow?table=`, `POST advance?seconds=`, `POST pass-time?seconds=` | privileges, clocks |
//! | `GET entra`, `POST entra` (JSON) | sign-in side and Graph: see [`crate::entra::control`] |

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;

use crate::answer::{Answer, Refusal, write_json_text};
use crate::content::base64;
use crate::entra;
use crate::query::pairs;
use crate::shared::Shared;
use crate::simulator::Handle;

/// Answers one request below `/_simulator/`.
pub(crate) fn answer(shared: &Arc<Shared>, post: bool, path: &str, query: &str, body: &[u8]) -> Answer {
    let handle = Handle::new(Arc::clone(shared));
    let parameters: HashMap<String, String> = pairs(query).map(|(name, value, _)| (name, value)).collect();
    let number =
        |name: &str, default: u64| parameters.get(name).and_then(|value| value.parse().ok()).unwrap_or(default);
    let table = parameters.get("table").map(String::as_str).unwrap_or_default();
    let done = || Answer::json("{\"done\":true}".to_owned());
    let of = |value: serde_json::Result<String>| {
        value.map_or_else(|error| Refusal::new(500, "", error.to_string()).into_answer(), Answer::json)
    };
    match (post, path) {
        (false, "info") => Answer::json(
            json!({
                "url": handle.url(), "authority": handle.authority(), "tenant": handle.tenant(), "client_id": handle.client_id(),
                "clients": handle.clients(), "secret": handle.secret(), "scope": format!("{}/.default", handle.url()),
                "graph": handle.entra().graph_url(), "erp": handle.entra().erp_url(),
            })
            .to_string(),
        ),
        (false, "tables") => of(serde_json::to_string(&handle.tables())),
        (false, "stats") => of(serde_json::to_string(&handle.stats())),
        (false, "files") => {
            let mut lines = String::new();
            for file in handle.files() {
                let line = json!({"table": file.table, "row": file.row, "column": file.column, "name": file.name, "bytes": base64(&file.bytes)});
                lines.push_str(&line.to_string());
                lines.push('\n');
            }
            Answer { media_type: "application/x-ndjson", ..Answer::text(lines) }
        }
        (false, path) if path.starts_with("rows/") => {
            let mut lines = String::new();
            for row in handle.rows(&path["rows/".len()..]) {
                lines.push_str("{\"keys\":[");
                for (index, key) in row.keys.iter().enumerate() {
                    if index > 0 {
                        lines.push(',');
                    }
                    write_json_text(key, &mut lines);
                }
                lines.push_str("],\"row\":");
                lines.push_str(&row.json);
                lines.push_str("}\n");
            }
            Answer { media_type: "application/x-ndjson", ..Answer::text(lines) }
        }
        (true, "reset-stats") => {
            handle.reset_stats();
            done()
        }
        (true, "edit") => of(serde_json::to_string(&handle.edit(number("seed", 1), number("changes", 100) as usize))),
        (true, "change-schema") => of(serde_json::to_string(&handle.change_schema(number("seed", 1)))),
        (true, "faults") => match serde_json::from_slice(body) {
            Ok(faults) => {
                handle.set_faults(faults);
                done()
            }
            Err(error) => Refusal::new(400, "", error.to_string()).into_answer(),
        },
        (true, "limits") => match serde_json::from_slice(body) {
            Ok(limits) => {
                handle.set_limits(limits);
                done()
            }
            Err(error) => Refusal::new(400, "", error.to_string()).into_answer(),
        },
        (true, "expire-delta-tokens") => {
            handle.expire_delta_tokens();
            done()
        }
        (true, "revoke-tokens") => {
            handle.revoke_tokens();
            done()
        }
        (true, "reject-links") => {
            handle.reject_links();
            done()
        }
        (true, "expire-secret") => {
            handle.expire_secret();
            done()
        }
        (true, "wipe") => Answer::json(json!({"removed": handle.wipe()}).to_string()),
        (true, "take-privilege") => {
            handle.take_privilege(parameters.get("name").map(String::as_str).unwrap_or_default());
            done()
        }
        (true, "give-privilege") => {
            handle.give_privilege(parameters.get("name").map(String::as_str).unwrap_or_default());
            done()
        }
        (true, "deny") => {
            handle.deny(table);
            done()
        }
        (true, "allow") => {
            handle.allow(table);
            done()
        }
        (true, "advance") => {
            handle.advance(Duration::from_secs(number("seconds", 0)));
            done()
        }
        (true, "pass-time") => {
            handle.pass_time(Duration::from_secs(number("seconds", 0)));
            done()
        }
        (_, "entra") => entra::control::answer(&handle.entra(), post, body),
        _ => Refusal::new(404, "", format!("The simulator has no control '{path}'.")).into_answer(),
    }
}
