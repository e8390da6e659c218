//! What a refusal of the service means for a table, for the run, and for the operator. Classified by code first, status
//! second, text last (`dataverse`, section 1.4).

use dynavault_model::{Diagnose, SourceError, TableRef};
use dynavault_odata::RequestError;
use dynavault_odata::fault::privilege;

/// The delta token is too old (section 4.5).
const TOKEN_EXPIRED: u32 = 0x8004_4352;
/// Change tracking is off for the table, or for a side of an intersect table (section 4.1).
const NOT_TRACKED: [u32; 2] = [0x8007_2491, 0x8007_2492];
/// Paging cookies that are not accepted (section 3.1).
const COOKIES: [u32; 3] = [0x8004_112a, 0x8004_1129, 0x8004_430a];
/// Admin-only mode, environment disabled (section 1.7).
const ENVIRONMENT_CLOSED: [u32; 2] = [0x8004_a113, 0x8004_a104];
/// The principal is not in the environment, has no role, no licence, is disabled (section 9.3).
const NOT_LET_IN: [u32; 4] = [0x8007_2560, 0x8004_2f09, 0x8004_d24b, 0x8004_a112];
/// A missing privilege or no access to the rows (section 9.3).
const NO_PRIVILEGE: [u32; 3] = [0x8004_0220, 0x8004_0299, 0x8004_8306];
/// The table does not offer the message (section 2.8).
const NOT_OFFERED: u32 = 0x8004_0800;
/// A virtual table whose source refuses (section 2.1).
const VIRTUAL_REFUSED: u32 = 0x8004_4822;
/// No such entity set (section 1.5).
const NO_SUCH_SET: u32 = 0x8006_088a;

/// A statement of the service took too long; a smaller page may help (section 5.7).
pub(crate) fn is_sql_timeout(error: &RequestError) -> bool {
    matches!(error, RequestError::Service { code: Some(0x8004_4151), .. })
}

/// The column that a refusal says does not exist (section 1.5: "Could not find a property named 'x' on type …").
pub(crate) fn unknown_property(error: &RequestError) -> Option<&str> {
    let RequestError::Service { status: 400, message, .. } = error else { return None };
    let rest = message.split_once("property named '")?.1;
    rest.split_once('\'').map(|(name, _)| name)
}

/// What a refusal means while a table is read; `link` says that the request followed a link the service gave earlier.
pub(crate) fn of_table(table: &TableRef, error: RequestError, link: bool) -> SourceError {
    let RequestError::Service { status, code, message, request_id } = &error else { return of_run(error) };
    let (status, code) = (*status, code.unwrap_or(0));
    let table = table.clone();
    let words = || with_request(message, request_id.as_deref());
    if code == TOKEN_EXPIRED || message.contains("perform a full sync") || (status == 410 && link) {
        return SourceError::TokenExpired { table };
    }
    if NOT_TRACKED.contains(&code) {
        return SourceError::NotTracked { table, message: words() };
    }
    if COOKIES.contains(&code) || unknown_property(&error).is_some() {
        return SourceError::LinkRejected { table, message: words() };
    }
    if ENVIRONMENT_CLOSED.contains(&code) || NOT_LET_IN.contains(&code) {
        return of_run(error);
    }
    if NO_PRIVILEGE.contains(&code) || status == 403 {
        let remedy = match privilege(message) {
            Some(name) => format!("give the application user a role with {name} at organization depth"),
            None => format!("give the application user read access to table {table} at organization depth"),
        };
        return SourceError::Refused { table, reason: format!("no permission: {}", words()), remedy: Some(remedy) };
    }
    if code == NOT_OFFERED || status == 501 {
        return SourceError::Refused {
            table,
            reason: format!("the service does not offer reading this table: {}", words()),
            remedy: Some("add the table to `exclude` of the environment if that is acceptable".into()),
        };
    }
    if code == VIRTUAL_REFUSED {
        return SourceError::Refused { table, reason: format!("virtual table: {}", words()), remedy: None };
    }
    if link && matches!(status, 400 | 404) {
        return SourceError::LinkRejected { table, message: words() };
    }
    if code == NO_SUCH_SET || status == 404 {
        return SourceError::Refused {
            table,
            reason: format!("the service does not know the table: {}", words()),
            remedy: None,
        };
    }
    SourceError::Refused {
        table,
        reason: format!("the service refused (status {status}, 0x{code:08x}): {}", words()),
        remedy: None,
    }
}

/// What a refusal means when it does not concern one table.
pub(crate) fn of_run(error: RequestError) -> SourceError {
    match error {
        RequestError::Exhausted { what, tries, elapsed, limit, last } => {
            SourceError::Exhausted { what, tries, elapsed, limit, last }
        }
        RequestError::Protocol { what, detail } => SourceError::Protocol { what, detail },
        RequestError::SinkStopped => SourceError::SinkStopped,
        RequestError::Cancelled => SourceError::Cancelled,
        RequestError::SignIn(source) => {
            let reason = dynavault_model::chain(&source);
            if source.kind() == dynavault_model::FaultKind::SignIn {
                SourceError::SignIn { reason, remedy: source.remedy() }
            } else {
                SourceError::StopRun { reason, remedy: source.remedy() }
            }
        }
        RequestError::Service { code: Some(code), ref message, .. } if NOT_LET_IN.contains(&code) => SourceError::SignIn {
            reason: format!("the environment does not let the application user in: {message}"),
            remedy: Some(
                "in the Power Platform admin centre, open the environment, Settings, Application users: add the app and give it a security role".into(),
            ),
        },
        RequestError::Service { code: Some(code), ref message, .. } if ENVIRONMENT_CLOSED.contains(&code) => {
            SourceError::StopRun {
                reason: format!("the environment takes no requests: {message}"),
                remedy: Some("end administration mode, or wait until the environment is enabled".into()),
            }
        }
        other => {
            let (reason, remedy) = (dynavault_model::chain(&other), other.remedy());
            if other.kind() == dynavault_model::FaultKind::SignIn {
                SourceError::SignIn { reason, remedy }
            } else {
                SourceError::StopRun { reason, remedy }
            }
        }
    }
}

fn with_request(message: &str, request_id: Option<&str>) -> String {
    match request_id {
        Some(id) => format!("{message} (request {id})"),
        None => message.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(status: u16, code: Option<u32>, message: &str) -> RequestError {
        RequestError::Service { status, code, message: message.into(), request_id: None }
    }

    #[test]
    fn an_expired_token_is_known_by_code_text_or_status() {
        let table = TableRef::ce("account");
        for error in [
            service(400, Some(0x8004_4352), "Version stamp"),
            service(400, None, "Please perform a full sync."),
            service(410, None, "Gone"),
        ] {
            assert!(matches!(of_table(&table, error, true), SourceError::TokenExpired { .. }));
        }
    }

    #[test]
    fn a_missing_privilege_names_the_privilege() {
        let error = service(403, Some(0x8004_0220), "Principal user is missing prvReadAccount privilege");
        match of_table(&TableRef::ce("account"), error, false) {
            SourceError::Refused { remedy: Some(remedy), .. } => assert!(remedy.contains("prvReadAccount"), "{remedy}"),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_unknown_user_and_a_closed_environment_end_the_run() {
        let table = TableRef::ce("account");
        assert!(matches!(of_table(&table, service(403, Some(0x8007_2560), "x"), false), SourceError::SignIn { .. }));
        assert!(matches!(of_table(&table, service(403, Some(0x8004_a113), "x"), false), SourceError::StopRun { .. }));
    }

    #[test]
    fn the_unknown_property_is_read_out_of_the_text() {
        let error = service(
            400,
            Some(0),
            "Could not find a property named 'new_gone' on type 'Microsoft.Dynamics.CRM.account'.",
        );
        assert_eq!(unknown_property(&error), Some("new_gone"));
        assert!(matches!(of_table(&TableRef::ce("account"), error, false), SourceError::LinkRejected { .. }));
    }
}
