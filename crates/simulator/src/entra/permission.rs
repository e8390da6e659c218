//! The three APIs and the permissions they publish (entra 2).

use serde::{Deserialize, Serialize};

use crate::dice::named_guid;

/// An API that tokens are made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Api {
    /// Microsoft Graph.
    Graph,
    /// Dataverse.
    DynamicsCrm,
    /// Finance and operations.
    DynamicsErp,
}

impl Api {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Graph, Self::DynamicsCrm, Self::DynamicsErp];

    /// The application id, the same in every tenant (entra 2).
    pub const fn app_id(self) -> &'static str {
        match self {
            Self::Graph => "00000003-0000-0000-c000-000000000000",
            Self::DynamicsCrm => "00000007-0000-0000-c000-000000000000",
            Self::DynamicsErp => "00000015-0000-0000-c000-000000000000",
        }
    }

    /// The name in the portal.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Graph => "Microsoft Graph",
            Self::DynamicsCrm => "Dynamics CRM",
            Self::DynamicsErp => "Dynamics ERP",
        }
    }

    /// Object id of the service principal in the simulated tenant; another one in every real tenant.
    pub fn object_id(self) -> String {
        named_guid(&format!("service principal of {}", self.name())).to_string()
    }
}

/// Who a permission lets act.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PermissionType {
    /// The signed-in user, through the application: `scp`.
    Delegated,
    /// The application by itself: `roles`.
    Application,
}

/// One permission: value and type together are the key (entra 2.1, rule 2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Permission {
    /// The API that publishes it.
    pub api: Api,
    /// Value as it stands in tokens.
    pub value: &'static str,
    /// Type.
    #[serde(rename = "type")]
    pub kind: PermissionType,
}

impl Permission {
    /// A permission to act for the signed-in user.
    pub const fn delegated(api: Api, value: &'static str) -> Self {
        Self { api, value, kind: PermissionType::Delegated }
    }

    /// A permission to act without a user.
    pub const fn application(api: Api, value: &'static str) -> Self {
        Self { api, value, kind: PermissionType::Application }
    }

    /// The rows of the CE profile (entra 2.1).
    pub const CE: [Self; 3] = [
        Self::delegated(Api::Graph, "User.Read"),
        Self::application(Api::Graph, "Directory.Read.All"),
        Self::delegated(Api::DynamicsCrm, "user_impersonation"),
    ];

    /// The rows of the UO profile (entra 2.1).
    pub const UO: [Self; 7] = [
        Self::delegated(Api::Graph, "User.Read"),
        Self::application(Api::Graph, "Directory.Read.All"),
        Self::application(Api::Graph, "Group.Read.All"),
        Self::delegated(Api::DynamicsErp, "AX.FullAccess"),
        Self::application(Api::DynamicsErp, "Connector.FullAccess"),
        Self::delegated(Api::DynamicsErp, "CustomService.FullAccess"),
        Self::delegated(Api::DynamicsErp, "Odata.FullAccess"),
    ];

    /// The published permission with these words; values compare with case.
    pub fn find(api: Api, kind: PermissionType, value: &str) -> Option<Self> {
        PUBLISHED
            .iter()
            .map(|published| published.permission)
            .find(|permission| permission.api == api && permission.kind == kind && permission.value == value)
    }

    /// The id in `oauth2PermissionScopes` or `appRoles`; empty for a permission that is not published.
    pub fn id(self) -> String {
        match PUBLISHED.iter().find(|published| published.permission == self).map(|published| published.id) {
            // Not known from public manifests: to be resolved at run time (entra 2.1).
            Some(INVENTED) => named_guid(&format!("{self:?}")).to_string(),
            Some(id) => id.to_owned(),
            None => String::new(),
        }
    }
}

/// Stands for an id that only this tenant knows.
const INVENTED: &str = "";

/// A permission with its id.
pub(crate) struct Published {
    pub(crate) permission: Permission,
    id: &'static str,
    pub(crate) enabled: bool,
}

const fn published(permission: Permission, id: &'static str) -> Published {
    Published { permission, id, enabled: true }
}

/// Everything the three service principals publish, as far as this product could meet it.
pub(crate) const PUBLISHED: [Published; 22] = [
    published(Permission::delegated(Api::Graph, "User.Read"), "e1fe6dd8-ba31-4d61-89e7-88639da4683d"),
    published(Permission::delegated(Api::Graph, "openid"), "37f7f235-527c-4136-accd-4a02d197296e"),
    published(Permission::delegated(Api::Graph, "profile"), "14dad69e-099b-42c9-810b-d002981feec1"),
    published(Permission::delegated(Api::Graph, "email"), "64a6cdd6-aab1-4aaf-94b8-3cc8405e90d0"),
    published(Permission::delegated(Api::Graph, "offline_access"), "7427e0e9-2fba-42fe-b0c0-848c9e6a8182"),
    // The same value as an application permission, with another id: a trap (entra 2.1, rule 2).
    published(Permission::delegated(Api::Graph, "Directory.Read.All"), "06da0dbc-49e2-44d2-8312-53f166ab848a"),
    published(Permission::delegated(Api::Graph, "Group.Read.All"), "5f8c59db-677d-491f-a6b8-5f174b11ec1d"),
    published(Permission::application(Api::Graph, "Directory.Read.All"), "7ab1d382-f21e-4acd-a863-ba3e13f7da61"),
    published(Permission::application(Api::Graph, "Directory.ReadWrite.All"), "19dbc75e-c2e2-444c-a770-ec69d8559fc7"),
    published(Permission::application(Api::Graph, "Group.Read.All"), "5b567255-7703-4780-807c-7be8301ae99b"),
    published(Permission::application(Api::Graph, "GroupMember.Read.All"), "98830695-27a2-44f7-8c18-0c3ebc9698f6"),
    published(Permission::application(Api::Graph, "Application.Read.All"), "9a5d68dd-52b0-4cc2-bd40-abcf44ac3a30"),
    published(Permission::application(Api::Graph, "Domain.Read.All"), "dbb9058a-0e50-45d7-ae91-66909b5d4664"),
    published(Permission::application(Api::Graph, "Organization.Read.All"), "498476ce-e0fe-48b0-b801-37ba7e2685c6"),
    published(Permission::delegated(Api::DynamicsCrm, "user_impersonation"), "78ce3f0f-a1ce-49c2-8cde-64b5c0896db4"),
    published(Permission::delegated(Api::DynamicsErp, "AX.FullAccess"), "6397893c-2260-496b-a41d-2f1f15b16ff3"),
    published(
        Permission::delegated(Api::DynamicsErp, "CustomService.FullAccess"),
        "ad8b4a5c-eecd-431a-a46f-33c060012ae1",
    ),
    published(Permission::delegated(Api::DynamicsErp, "Odata.FullAccess"), "a849e696-ce45-464a-81de-e5c5b45519c1"),
    published(Permission::application(Api::DynamicsErp, "Connector.FullAccess"), INVENTED),
    // Entries that are switched off are to be ignored (entra 2.3).
    Published { permission: Permission::delegated(Api::DynamicsErp, "Odata.ReadAccess"), id: INVENTED, enabled: false },
    Published {
        permission: Permission::application(Api::DynamicsErp, "Connector.ReadAccess"),
        id: INVENTED,
        enabled: false,
    },
    Published {
        permission: Permission::application(Api::DynamicsCrm, "user_impersonation"),
        id: INVENTED,
        enabled: false,
    },
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::{Api, PUBLISHED, Permission, PermissionType};

    #[test]
    fn ids_are_distinct_and_every_row_of_the_profiles_is_published() {
        let ids: BTreeSet<String> = PUBLISHED.iter().map(|published| published.permission.id()).collect();
        assert_eq!(ids.len(), PUBLISHED.len());
        for permission in Permission::CE.iter().chain(&Permission::UO) {
            assert!(!permission.id().is_empty(), "{permission:?}");
        }
        assert_ne!(
            Permission::find(Api::Graph, PermissionType::Delegated, "Directory.Read.All").unwrap().id(),
            Permission::find(Api::Graph, PermissionType::Application, "Directory.Read.All").unwrap().id(),
        );
    }
}
