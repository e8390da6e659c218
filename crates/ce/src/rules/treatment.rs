//! Which tables are written row by row, which are links, and which are left alone (`dataverse`, section 8).
//!
//! Three kinds of table are left alone. *References* are people and settings that the platform provides, which a restore only
//! looks up. *Customisations* travel in solutions. *Operational* tables are the service's own queues, logs and caches. A table
//! that is in none of these lists is data.

use dynavault_model::{LinkEnd, Treatment};

use crate::definition::Definition;

/// Looked up, never written (sections 6.7, 8.4, 8.5).
const REFERENCES: &[(&str, &str)] = &[
    ("systemuser", "users come from Entra ID; a restore only looks them up"),
    ("businessunit", "business units are set up by an administrator; a restore only looks them up"),
    ("transactioncurrency", "currencies are set up by an administrator; a restore only looks them up"),
    ("role", "security roles are moved by solutions; a restore only looks them up"),
    ("organization", "the settings of the environment are never written by a restore"),
];

/// Left alone, each for its own reason.
const SINGLE: &[(&str, &str)] = &[
    ("activitypointer", "the service keeps this list of all activities itself"),
    ("audit", "audit rows are written by the service only"),
    ("calendar", "calendars are replaced as a whole by the service's own pages"),
    ("calendarrule", "calendars are replaced as a whole by the service's own pages"),
    ("fileattachment", "the service makes these rows when files are uploaded"),
    ("attachment", "the service makes these rows when mail attachments are uploaded"),
    ("imagedescriptor", "the service makes these rows when images are uploaded"),
    ("principalobjectaccess", "shares are granted by messages and are not put back"),
    ("principalobjectattributeaccess", "shares are granted by messages and are not put back"),
    ("systemuserroles", "a restore does not grant security roles"),
    ("teamroles", "a restore does not grant security roles"),
    ("systemuserprofiles", "a restore does not grant column security"),
    ("teamprofiles", "a restore does not grant column security"),
    ("listmember", "members of marketing lists are added by messages of their own"),
    ("usersettings", "each user has one row of settings, which comes with the user"),
    ("stringmap", CUSTOMISATION),
    ("privilege", CUSTOMISATION),
    ("roleprivileges", CUSTOMISATION),
    ("fieldsecurityprofile", CUSTOMISATION),
    ("fieldpermission", CUSTOMISATION),
    ("roletemplate", CUSTOMISATION),
    ("publisher", CUSTOMISATION),
    ("publisheraddress", CUSTOMISATION),
    ("savedquery", CUSTOMISATION),
    ("savedqueryvisualization", CUSTOMISATION),
    ("systemform", CUSTOMISATION),
    ("webresource", CUSTOMISATION),
    ("workflow", CUSTOMISATION),
    ("workflowbinary", CUSTOMISATION),
    ("workflowdependency", CUSTOMISATION),
    ("processstage", CUSTOMISATION),
    ("processtrigger", CUSTOMISATION),
    ("canvasapp", CUSTOMISATION),
    ("connectionreference", CUSTOMISATION),
    ("connector", CUSTOMISATION),
    ("environmentvariabledefinition", CUSTOMISATION),
    ("entity", CUSTOMISATION),
    ("attribute", CUSTOMISATION),
    ("relationship", CUSTOMISATION),
    ("entityrelationship", CUSTOMISATION),
    ("entitykey", CUSTOMISATION),
    ("optionset", CUSTOMISATION),
    ("managedproperty", CUSTOMISATION),
    ("entityimageconfig", CUSTOMISATION),
    ("attributeimageconfig", CUSTOMISATION),
    ("sitemap", CUSTOMISATION),
    ("hierarchyrule", CUSTOMISATION),
    ("hierarchysecurityconfiguration", CUSTOMISATION),
    ("customcontrol", CUSTOMISATION),
    ("customcontroldefaultconfig", CUSTOMISATION),
    ("customcontrolresource", CUSTOMISATION),
    ("serviceendpoint", CUSTOMISATION),
    ("entitydataprovider", CUSTOMISATION),
    ("entitydatasource", CUSTOMISATION),
    ("languagelocale", CUSTOMISATION),
    ("mailbox", OPERATIONAL),
    ("emailserverprofile", OPERATIONAL),
    ("asyncoperation", OPERATIONAL),
    ("bulkdeleteoperation", OPERATIONAL),
    ("bulkdeletefailure", OPERATIONAL),
    ("duplicaterecord", OPERATIONAL),
    ("syncerror", OPERATIONAL),
    ("exchangesyncidmapping", OPERATIONAL),
    ("callbackregistration", OPERATIONAL),
    ("recyclebinconfig", OPERATIONAL),
    ("retentionconfig", OPERATIONAL),
    ("userentityinstancedata", OPERATIONAL),
    ("userentityuisettings", OPERATIONAL),
    ("activitymonitor", OPERATIONAL),
    ("flowsession", OPERATIONAL),
    ("flowrun", OPERATIONAL),
    ("flowlog", OPERATIONAL),
    ("license", OPERATIONAL),
    ("notification", OPERATIONAL),
    ("recentlyused", OPERATIONAL),
];

/// Families of the platform's own tables, by the start of the name. A table of a publisher has an underscore in its name and
/// is never meant.
const FAMILIES: &[(&str, &str)] = &[
    ("solution", CUSTOMISATION),
    ("dependency", CUSTOMISATION),
    ("plugin", CUSTOMISATION),
    ("sdkmessage", CUSTOMISATION),
    ("appmodule", CUSTOMISATION),
    ("appconfig", CUSTOMISATION),
    ("ribbon", CUSTOMISATION),
    ("report", CUSTOMISATION),
    ("customapi", CUSTOMISATION),
    ("timezone", OPERATIONAL),
    ("import", OPERATIONAL),
    ("mobileoffline", OPERATIONAL),
    ("subscription", OPERATIONAL),
];

const CUSTOMISATION: &str = "customisations are moved by solutions, not as rows";
const OPERATIONAL: &str = "the service's own bookkeeping is not put back";

/// How the rows of a table get into an environment.
pub(super) fn treatment(table: &str, definition: &Definition) -> Treatment {
    let listed =
        |list: &[(&str, &str)]| list.iter().find(|(name, _)| *name == table).map(|(_, why)| (*why).to_string());
    if let Some(why) = listed(REFERENCES) {
        return Treatment::Reference(why);
    }
    if table == "activityparty" {
        return Treatment::Along { parent: "_activityid_value".into() };
    }
    if let Some(why) = listed(SINGLE) {
        return Treatment::Never(why);
    }
    let of_platform = !table.contains('_');
    if let Some((_, why)) = FAMILIES.iter().find(|(start, _)| of_platform && table.starts_with(start)) {
        return Treatment::Never((*why).into());
    }
    if crate::excluded_by_default(table) {
        return Treatment::Never(OPERATIONAL.into());
    }
    if definition.table_type.as_deref() == Some("Virtual") {
        return Treatment::Never("virtual table: its rows live in another system".into());
    }
    if definition.is_intersect == Some(true) {
        return links(table, definition);
    }
    if definition.is_private == Some(true) {
        return Treatment::Never("the service keeps this table to itself".into());
    }
    Treatment::Rows
}

fn links(table: &str, definition: &Definition) -> Treatment {
    let Some(relationship) = definition.links(table) else {
        return Treatment::Never("the service's metadata does not say which tables this table links".into());
    };
    if relationship.first_navigation.is_none() {
        return Treatment::Never("the service offers no way to make links of this table".into());
    }
    let end = |table: &str, member: &str| LinkEnd { table: table.into(), member: member.into() };
    Treatment::Links {
        first: end(&relationship.first_table, &relationship.first_column),
        second: end(&relationship.second_table, &relationship.second_column),
    }
}
