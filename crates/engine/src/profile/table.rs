//! The permission table: what an app profile needs, as data (`entra` protocol, section 2.1).
//!
//! The value together with the type is the key: one value may exist both as a delegated and as an application permission.
//! The ids are those of public manifests and help in writing one; the tenant's own service principals decide.

use serde::Serialize;
use serde_json::{Value, json};

use crate::config::EnvironmentKind;
use crate::profile::SignInMode;

/// A service that publishes permissions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Api {
    /// Microsoft Graph.
    Graph,
    /// Dataverse.
    DynamicsCrm,
    /// Finance and Operations.
    DynamicsErp,
}

impl Api {
    /// Name in the portal.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Graph => "Microsoft Graph",
            Self::DynamicsCrm => "Dynamics CRM",
            Self::DynamicsErp => "Dynamics ERP",
        }
    }

    /// Application id, the same in every tenant (section 2).
    pub const fn app_id(self) -> &'static str {
        match self {
            Self::Graph => "00000003-0000-0000-c000-000000000000",
            Self::DynamicsCrm => "00000007-0000-0000-c000-000000000000",
            Self::DynamicsErp => "00000015-0000-0000-c000-000000000000",
        }
    }

    /// The service behind environments of a kind.
    pub const fn of_environment(kind: EnvironmentKind) -> Self {
        match kind {
            EnvironmentKind::Ce => Self::DynamicsCrm,
            EnvironmentKind::Uo => Self::DynamicsErp,
        }
    }
}

/// Who a permission lets act.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum PermissionType {
    /// The signed-in person, through the app.
    Delegated,
    /// The app by itself.
    Application,
}

impl PermissionType {
    /// The word in JSON and in the portal.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Delegated => "delegated",
            Self::Application => "application",
        }
    }

    /// Whether a permission of this type has any effect in a mode. An app by itself acts with application permissions
    /// only; a person's token never carries one (section 10.1).
    pub fn counts_in(self, mode: SignInMode) -> bool {
        matches!((self, mode), (Self::Delegated, SignInMode::Delegated) | (Self::Application, SignInMode::AppOnly))
    }

    /// Its word in a manifest (section 2.4).
    const fn in_manifest(self) -> &'static str {
        match self {
            Self::Delegated => "Scope",
            Self::Application => "Role",
        }
    }
}

/// One row of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PermissionRow {
    /// Kind of profile.
    pub kind: EnvironmentKind,
    /// Who publishes it.
    pub api: Api,
    /// Value, as it stands in tokens.
    pub permission: &'static str,
    /// Type.
    pub of_type: PermissionType,
    /// What it is for.
    pub needed_for: &'static str,
    /// Id in public manifests; `None` where none is known and the tenant has to be asked.
    pub id: Option<&'static str>,
}

const fn row(
    kind: EnvironmentKind,
    api: Api,
    permission: &'static str,
    of_type: PermissionType,
    needed_for: &'static str,
    id: Option<&'static str>,
) -> PermissionRow {
    PermissionRow { kind, api, permission, of_type, needed_for, id }
}

use EnvironmentKind::{Ce, Uo};
use PermissionType::{Application, Delegated};

/// All ten rows.
#[rustfmt::skip] // One row reads as one line.
pub const PERMISSIONS: [PermissionRow; 10] = [
    row(Ce, Api::Graph, "User.Read", Delegated, "sign-in, tenant information", Some("e1fe6dd8-ba31-4d61-89e7-88639da4683d")),
    row(Ce, Api::Graph, "Directory.Read.All", Application, "tenant information", Some("7ab1d382-f21e-4acd-a863-ba3e13f7da61")),
    row(Ce, Api::DynamicsCrm, "user_impersonation", Delegated, "back up and restore CE records", Some("78ce3f0f-a1ce-49c2-8cde-64b5c0896db4")),
    row(Uo, Api::Graph, "User.Read", Delegated, "sign-in, tenant information", Some("e1fe6dd8-ba31-4d61-89e7-88639da4683d")),
    row(Uo, Api::Graph, "Directory.Read.All", Application, "tenant information", Some("7ab1d382-f21e-4acd-a863-ba3e13f7da61")),
    row(Uo, Api::Graph, "Group.Read.All", Application, "read all groups", Some("5b567255-7703-4780-807c-7be8301ae99b")),
    row(Uo, Api::DynamicsErp, "AX.FullAccess", Delegated, "back up and restore UO records", Some("6397893c-2260-496b-a41d-2f1f15b16ff3")),
    row(Uo, Api::DynamicsErp, "Connector.FullAccess", Application, "connector service (recurring integrations)", None),
    row(Uo, Api::DynamicsErp, "CustomService.FullAccess", Delegated, "custom services", Some("ad8b4a5c-eecd-431a-a46f-33c060012ae1")),
    row(Uo, Api::DynamicsErp, "Odata.FullAccess", Delegated, "OData data entities", Some("a849e696-ce45-464a-81de-e5c5b45519c1")),
];

/// Rows of one kind of profile.
pub fn permissions_of(kind: EnvironmentKind) -> impl Iterator<Item = &'static PermissionRow> {
    PERMISSIONS.iter().filter(move |row| row.kind == kind)
}

/// Whether any row of the table asks for a value; whatever else is granted is more than this program needs.
pub(crate) fn is_in_table(api: Api, permission: &str, of_type: PermissionType) -> bool {
    PERMISSIONS.iter().any(|row| row.api == api && row.permission == permission && row.of_type == of_type)
}

/// `requiredResourceAccess` of an app registration that asks for exactly the rows of a kind (section 2.4). Permissions
/// without a known id have to be added by name in the portal.
pub fn manifest(kind: EnvironmentKind) -> Value {
    let apis = [Api::Graph, Api::of_environment(kind)];
    let of_api = |api: Api| {
        let access: Vec<Value> = permissions_of(kind)
            .filter(|row| row.api == api)
            .filter_map(|row| Some(json!({"id": row.id?, "type": row.of_type.in_manifest()})))
            .collect();
        json!({"resourceAppId": api.app_id(), "resourceAccess": access})
    };
    Value::from(apis.map(of_api).to_vec())
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn the_table_has_three_rows_for_ce_and_seven_for_uo() {
        assert_eq!((permissions_of(Ce).count(), permissions_of(Uo).count()), (3, 7));
        let keys: HashSet<_> =
            PERMISSIONS.iter().map(|row| (row.kind == Ce, row.api, row.permission, row.of_type)).collect();
        assert_eq!(keys.len(), 10);
    }

    #[test]
    fn every_row_counts_in_exactly_one_mode() {
        for row in &PERMISSIONS {
            let modes = [SignInMode::AppOnly, SignInMode::Delegated];
            assert_eq!(modes.iter().filter(|mode| row.of_type.counts_in(**mode)).count(), 1, "{row:?}");
        }
    }

    #[test]
    fn a_manifest_asks_for_exactly_the_rows_with_a_known_id() {
        let ce = manifest(Ce);
        assert_eq!(ce[0]["resourceAccess"].as_array().unwrap().len(), 2);
        assert_eq!(ce[1]["resourceAppId"], Api::DynamicsCrm.app_id());
        assert_eq!(ce[1]["resourceAccess"][0], json!({"id": "78ce3f0f-a1ce-49c2-8cde-64b5c0896db4", "type": "Scope"}));
        assert_eq!(manifest(Uo)[1]["resourceAccess"].as_array().unwrap().len(), 3);
        assert!(is_in_table(Api::Graph, "Directory.Read.All", Application));
        assert!(!is_in_table(Api::Graph, "Directory.Read.All", Delegated), "the type is part of the key");
    }
}
