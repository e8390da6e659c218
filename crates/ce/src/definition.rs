//! The parts of the service's own metadata that writing needs, as a schema keeps them (`dataverse`, sections 2.1 to 2.4).
//!
//! Everything is optional: an older service, or an older snapshot, knows less. What is unknown is not written.

use std::borrow::Cow;
use std::collections::HashMap;

use dynavault_model::TableSchema;
use serde::Deserialize;

/// Properties of a table.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct Definition {
    pub(crate) table_type: Option<String>,
    pub(crate) data_provider_id: Option<String>,
    pub(crate) is_intersect: Option<bool>,
    pub(crate) is_activity: Option<bool>,
    pub(crate) is_private: Option<bool>,
    #[serde(rename = "IsBPFEntity")]
    pub(crate) is_process_instance: Option<bool>,
    pub(crate) is_optimistic_concurrency_enabled: Option<bool>,
    attributes: Option<Vec<Attribute>>,
    many_to_one_relationships: Option<Vec<ManyToOne>>,
    many_to_many_relationships: Option<Vec<ManyToMany>>,
}

/// A column.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct Attribute {
    pub(crate) logical_name: String,
    #[serde(rename = "AttributeType")]
    base_type: Option<String>,
    #[serde(rename = "AttributeTypeName")]
    real_type: Option<Named>,
    #[serde(rename = "AttributeOf")]
    pub(crate) shadow_of: Option<String>,
    pub(crate) is_valid_for_create: Option<bool>,
    pub(crate) is_valid_for_update: Option<bool>,
    pub(crate) source_type: Option<i64>,
    required_level: Option<Named>,
    pub(crate) max_length: Option<u64>,
    pub(crate) targets: Option<Vec<String>>,
    option_set: Option<OptionSet>,
    pub(crate) calculation_of: Option<String>,
    pub(crate) is_base_currency: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Named {
    value: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct OptionSet {
    options: Option<Vec<Choice>>,
}

/// One value of a choice; of a status, with the state it belongs to.
#[derive(Debug, Default, Clone, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct Choice {
    pub(crate) value: Option<i64>,
    pub(crate) state: Option<i64>,
}

/// A relationship seen from the table with the lookup.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct ManyToOne {
    pub(crate) referencing_attribute: String,
    pub(crate) referencing_entity_navigation_property_name: Option<String>,
    pub(crate) referenced_entity: String,
    cascade_configuration: Option<Cascades>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Cascades {
    delete: Option<String>,
    assign: Option<String>,
}

/// A many-to-many relationship and its table of links.
#[derive(Debug, Default, Clone, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct ManyToMany {
    pub(crate) intersect_entity_name: String,
    #[serde(rename = "Entity1LogicalName")]
    pub(crate) first_table: String,
    #[serde(rename = "Entity1IntersectAttribute")]
    pub(crate) first_column: String,
    #[serde(rename = "Entity1NavigationPropertyName")]
    pub(crate) first_navigation: Option<String>,
    #[serde(rename = "Entity2LogicalName")]
    pub(crate) second_table: String,
    #[serde(rename = "Entity2IntersectAttribute")]
    pub(crate) second_column: String,
}

impl Definition {
    /// Reads the definition a schema carries; nothing is known where it cannot be read.
    pub(crate) fn of(schema: &TableSchema) -> Self {
        Self::deserialize(&schema.definition).unwrap_or_default()
    }

    pub(crate) fn attributes(&self) -> &[Attribute] {
        self.attributes.as_deref().unwrap_or_default()
    }

    pub(crate) fn attribute(&self, name: &str) -> Option<&Attribute> {
        self.attributes().iter().find(|attribute| attribute.logical_name == name)
    }

    pub(crate) fn lookups(&self) -> &[ManyToOne] {
        self.many_to_one_relationships.as_deref().unwrap_or_default()
    }

    /// The one relationship whose links the table holds; none where there are several, as in lists of members.
    pub(crate) fn links(&self, table: &str) -> Option<&ManyToMany> {
        let all = self.many_to_many_relationships.as_deref().unwrap_or_default();
        let mut own = all.iter().filter(|relationship| relationship.intersect_entity_name == table);
        own.next().filter(|_| own.next().is_none())
    }

    /// Rows live in a document database (section 8.12).
    pub(crate) fn is_elastic(&self) -> bool {
        let elastic = crate::metadata::ELASTIC_PROVIDER;
        self.table_type.as_deref() == Some("Elastic")
            || self.data_provider_id.as_deref().is_some_and(|id| id.eq_ignore_ascii_case(elastic))
    }
}

impl Attribute {
    /// The real type name (section 2.2); that of the base type, which is ambiguous, where the service gives no other.
    pub(crate) fn kind(&self) -> Cow<'_, str> {
        let real = self.real_type.as_ref().and_then(|name| name.value.as_deref());
        real.map_or_else(|| format!("{}Type", self.base_type.as_deref().unwrap_or_default()).into(), Cow::Borrowed)
    }

    /// The service itself refuses a row without it; `ApplicationRequired` is a rule of forms (section 6.1).
    pub(crate) fn is_system_required(&self) -> bool {
        self.required_level.as_ref().and_then(|level| level.value.as_deref()) == Some("SystemRequired")
    }

    /// Calculated, rollup or formula (section 2.2).
    pub(crate) fn is_computed(&self) -> bool {
        self.source_type.is_some_and(|source| (1..=3).contains(&source))
            || self.is_base_currency == Some(true)
            || self.calculation_of.is_some()
    }

    pub(crate) fn choices(&self) -> &[Choice] {
        self.option_set.as_ref().and_then(|set| set.options.as_deref()).unwrap_or_default()
    }
}

impl ManyToOne {
    /// Deleting the parent deletes the child (section 6.14).
    pub(crate) fn deletes(&self) -> bool {
        self.cascade_configuration.as_ref().and_then(|cascades| cascades.delete.as_deref()) == Some("Cascade")
    }

    /// Assigning the parent assigns the child: all children, the active ones, or those with the parent's old owner (section 6.7).
    pub(crate) fn assigns(&self) -> bool {
        let assign = self.cascade_configuration.as_ref().and_then(|cascades| cascades.assign.as_deref());
        matches!(assign, Some("Cascade" | "Active" | "UserOwned"))
    }
}

/// Navigation properties by lookup column and target table (section 2.4: case-sensitive, never derived).
pub(crate) struct Navigations {
    by_target: HashMap<(String, String), String>,
    owners: Vec<String>,
    single: HashMap<String, Option<String>>,
}

impl Navigations {
    pub(crate) fn of(definition: &Definition) -> Self {
        let mut by_target = HashMap::new();
        let mut single: HashMap<String, Option<String>> = HashMap::new();
        for lookup in definition.lookups() {
            let Some(name) = &lookup.referencing_entity_navigation_property_name else { continue };
            let (column, target) = (&lookup.referencing_attribute, &lookup.referenced_entity);
            by_target.insert((column.clone(), target.clone()), name.clone());
            single.entry(column.clone()).and_modify(|only| *only = None).or_insert_with(|| Some(target.clone()));
        }
        for attribute in definition.attributes() {
            if let Some([only]) = attribute.targets.as_deref() {
                single.insert(attribute.logical_name.clone(), Some(only.clone()));
            }
        }
        let owners = definition.attributes().iter().filter(|attribute| attribute.kind() == "OwnerType");
        let owners = owners.map(|attribute| attribute.logical_name.clone()).collect();
        Self { by_target, owners, single }
    }

    /// The property through which `column` is set to a row of `target`.
    pub(crate) fn get(&self, column: &str, target: &str) -> Option<&str> {
        let key = |target: &str| (column.to_string(), target.to_string());
        let found = self.by_target.get(&key(target)).or_else(|| {
            // Users and teams are both principals, and the relationship of an owner may name their common type.
            self.is_owner(column).then(|| self.by_target.get(&key("owner"))).flatten()
        });
        found.map(String::as_str).or_else(|| {
            let owner = self.owners.iter().find(|owner| *owner == column)?;
            Some(owner.as_str())
        })
    }

    /// The only table that `column` can refer to.
    pub(crate) fn only_target(&self, column: &str) -> Option<&str> {
        self.single.get(column)?.as_deref()
    }

    /// Every property of `column`, in order of name. Clearing a lookup goes through each of them, because only the one that
    /// is set clears it (section 6.2).
    pub(crate) fn all(&self, column: &str) -> Vec<&str> {
        let own = self.by_target.iter().filter(|((name, _), _)| name == column);
        let mut names: Vec<&str> = own.map(|(_, navigation)| navigation.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    fn is_owner(&self, column: &str) -> bool {
        self.owners.iter().any(|owner| owner == column)
    }
}
