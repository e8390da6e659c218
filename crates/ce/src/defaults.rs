//! Tables that are not backed up unless somebody names them: the service's own queues and logs (`dataverse`, section 8.16).

const NAMES: &[&str] = &[
    "asyncoperation",
    "workflowlog",
    "processsession",
    "plugintracelog",
    "importlog",
    "importdata",
    "importfile",
    "bulkdeletefailure",
    "duplicaterecord",
    "syncerror",
    "tracelog",
];

const PREFIXES: &[&str] = &["mobileofflineprofile", "subscription"];

/// Whether a table is left out by default. Patterns apply to the service's own tables only: a customer's table is never
/// left out because its name happens to contain a word.
pub fn excluded_by_default(table: &str) -> bool {
    if NAMES.contains(&table) {
        return true;
    }
    // Tables of a publisher carry its prefix and an underscore; the platform's own have none.
    if !table.contains('_') {
        return PREFIXES.iter().any(|prefix| table.starts_with(prefix)) || table.contains("telemetry");
    }
    table.starts_with("msdyn_") && (table.ends_with("log") || table.contains("telemetry"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logs_of_the_platform_are_left_out_and_tables_of_customers_are_not() {
        for table in ["asyncoperation", "subscriptionclients", "searchtelemetry", "msdyn_flowactionapprovallog"] {
            assert!(excluded_by_default(table), "{table}");
        }
        for table in ["account", "new_telemetry", "contoso_visitlog", "audit", "subject"] {
            assert!(!excluded_by_default(table), "{table}");
        }
    }
}
