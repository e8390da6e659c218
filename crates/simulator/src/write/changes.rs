//! A body held against a table: which cells it sets, which rows it names (dataverse 6.1, 6.2).

use crate::answer::Refusal;
use crate::guid::Guid;
use crate::schema::{Column, Kind, Slot, Storage, TableDef};

use super::{Body, WriteContext, bad_payload, resolve, values};

/// What a body is read for; some columns can only be set at one time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    Create,
    Update,
}

/// What a body sets.
#[derive(Debug, Default)]
pub(super) struct Changes {
    /// Cell index and new raw text; empty for null.
    pub(super) cells: Vec<(usize, String)>,
    /// Lookups to clear when they lead to one of these tables.
    clears: Vec<(usize, Vec<String>)>,
    /// The primary key, when the body has it.
    pub(super) id: Option<Guid>,
    /// The partition of an elastic row.
    pub(super) partition: Option<String>,
    pub(super) state: Option<i32>,
    pub(super) status: Option<i32>,
    /// The parties of an activity.
    pub(super) parties: Option<Vec<Body>>,
}

impl Changes {
    /// Whether a cell is set, and to what.
    pub(super) fn get(&self, cell: usize) -> Option<&str> {
        self.cells.iter().find(|(index, _)| *index == cell).map(|(_, value)| value.as_str())
    }

    /// Whether anything but the state changes.
    pub(super) fn touches(&self) -> bool {
        !self.cells.is_empty() || !self.clears.is_empty() || self.parties.is_some()
    }

    /// Writes what is set into the cells of a row.
    pub(super) fn apply(&self, cells: &mut [String]) {
        // A null through a navigation that is not the one in use clears nothing (dataverse 6.2).
        for (cell, targets) in &self.clears {
            if cells[*cell].get(36..).is_some_and(|target| targets.iter().any(|of| of == target)) {
                cells[*cell].clear();
            }
        }
        for (cell, value) in &self.cells {
            cells[*cell].clone_from(value);
        }
    }

    /// Reads a body; refuses what the table does not have or does not take.
    pub(super) fn read(
        context: &mut WriteContext<'_>,
        table: usize,
        body: &Body,
        purpose: Purpose,
    ) -> Result<Self, Refusal> {
        // Reading values needs the context; definitions are small beside a request.
        let def = context.database.tables[table].def.clone();
        let mut changes = Self::default();
        for (name, value) in &body.0 {
            let raw = value.get();
            if let Some((navigation, annotation)) = name.split_once('@') {
                if annotation == "odata.bind" {
                    changes.bind(context, &def, navigation, raw)?;
                }
                // Other annotations, such as formatted values or the type, say nothing new.
                continue;
            }
            if def.activity && name.strip_suffix("_activity_parties") == Some(def.name.as_str()) {
                changes.parties = body.list(name)?;
                continue;
            }
            let Some(column) = def.property(name) else {
                if is_navigation(&def, name) {
                    if raw == "null" {
                        changes.bind(context, &def, name, raw)?;
                        continue;
                    }
                    return Err(Refusal::not_simulated("A deep insert"));
                }
                return Err(unknown_property(&def, name));
            };
            changes.set(context, &def, column, raw, purpose)?;
        }
        Ok(changes)
    }

    fn set(
        &mut self,
        context: &mut WriteContext<'_>,
        def: &TableDef,
        column: &Column,
        raw: &str,
        purpose: Purpose,
    ) -> Result<(), Refusal> {
        if column.calculated {
            return Err(Refusal::new(
                400,
                "0x80044911",
                format!("The calculated or rollup column '{}' cannot be set.", column.name),
            ));
        }
        match column.slot {
            Slot::Key => {
                let text: String = serde_json::from_str(raw).unwrap_or_default();
                let id = Guid::parse(&text)
                    .ok_or_else(|| bad_payload(&format!("'{}' is not a valid Edm.Guid.", column.name)))?;
                self.id = Some(id);
                return Ok(());
            }
            Slot::Partition => {
                let text: String = serde_json::from_str(raw).unwrap_or_default();
                check_partition(&text)?;
                self.partition = Some(text);
                return Ok(());
            }
            Slot::Version | Slot::None => return Err(read_only(column)),
            Slot::Cell(_) | Slot::Thumbnail(_) => {}
        }
        if !column.writable {
            return Err(read_only(column));
        }
        match (&column.kind, purpose) {
            // The other images follow when the row exists (dataverse 7.2).
            (Kind::Image, Purpose::Create) if column.name != "entityimage" && raw != "null" => {
                return Err(Refusal::new(
                    400,
                    "0x80090487",
                    format!("Only the primary image can be set at creation, not '{}'.", column.name),
                ));
            }
            (Kind::Date(_), Purpose::Update) if column.name == "overriddencreatedon" => return Err(read_only(column)),
            _ => {}
        }
        let value = values::cell(context, column, raw)?;
        if value.is_empty() && column.required {
            return Err(required(def, column));
        }
        match &column.kind {
            Kind::State { .. } => self.state = value.parse().ok(),
            Kind::Status { .. } => self.status = value.parse().ok(),
            _ => {
                if let Slot::Cell(cell) | Slot::Thumbnail(cell) = column.slot {
                    self.cells.push((cell, value));
                }
            }
        }
        Ok(())
    }

    /// Sets a lookup through its navigation property, whose case matters (dataverse 2.4).
    fn bind(
        &mut self,
        context: &mut WriteContext<'_>,
        def: &TableDef,
        navigation: &str,
        raw: &str,
    ) -> Result<(), Refusal> {
        let found = def.columns.iter().find_map(|column| {
            let targets: Vec<&str> = match &column.kind {
                Kind::Owner => vec!["systemuser", "team"],
                kind => kind.targets().iter().map(String::as_str).collect(),
            };
            let fitting: Vec<&str> =
                targets.into_iter().filter(|target| def.navigation(column, target) == navigation).collect();
            (!fitting.is_empty()).then_some((column, fitting))
        });
        let Some((column, targets)) = found else {
            return Err(bad_payload(&format!(
                "An undeclared property '{navigation}' which only has property annotations in the payload but no property value was found in the payload for Entity :'{}'.",
                def.name
            )));
        };
        let (true, Slot::Cell(cell)) = (column.writable, column.slot) else { return Err(read_only(column)) };
        if raw == "null" {
            if column.required {
                return Err(required(def, column));
            }
            self.clears.push((cell, targets.into_iter().map(str::to_owned).collect()));
            return Ok(());
        }
        let reference: String = serde_json::from_str(raw)
            .map_err(|_| bad_payload(&format!("The value of '{navigation}@odata.bind' is not a text.")))?;
        let (table, key) = resolve(context, &reference)?;
        let target = context.database.tables[table].def.name.clone();
        if !targets.contains(&target.as_str()) {
            return Err(bad_payload(&format!("The navigation property '{navigation}' does not lead to '{target}'.")));
        }
        let value = format!("{}{target}", key.id);
        if column.kind != Kind::Owner {
            // Both ends of a lookup are asked (dataverse 9.4).
            let own = context.database.table(&def.name).unwrap_or(table);
            context.require("Append", own)?;
            context.require("AppendTo", table)?;
        }
        // Of two navigations of one lookup the later one wins.
        self.cells.retain(|(index, _)| *index != cell);
        self.cells.push((cell, value));
        Ok(())
    }
}

fn is_navigation(def: &TableDef, name: &str) -> bool {
    def.columns.iter().any(|column| match &column.kind {
        Kind::Owner => name == "ownerid",
        kind => kind.targets().iter().any(|target| def.navigation(column, target) == name),
    })
}

fn unknown_property(def: &TableDef, name: &str) -> Refusal {
    bad_payload(&format!("Invalid property '{name}' was found in entity 'Microsoft.Dynamics.CRM.{}'.", def.name))
}

/// A column the service alone sets (dataverse 6.6).
fn read_only(column: &Column) -> Refusal {
    Refusal::new(400, "0x80040203", format!("The column '{}' is read-only and cannot be set.", column.name))
}

/// A null where the platform needs a value (dataverse 6.1).
pub(super) fn required(def: &TableDef, column: &Column) -> Refusal {
    let code = match (def.name.as_str(), column.name.as_str()) {
        (_, "ownerid") => "0x80040215",
        // An opportunity without a customer has a code of its own (dataverse 6.16).
        ("opportunity", "customerid") => "0x80040505",
        _ => "0x80040200",
    };
    Refusal::new(400, code, format!("The required field '{}' of {} is missing.", column.name, def.name))
}

/// Partitions are short and keep out of URLs (dataverse 8.12).
fn check_partition(text: &str) -> Result<(), Refusal> {
    const LENGTH_MAX: usize = 1_024;
    if text.is_empty() || text.len() > LENGTH_MAX || text.contains(['/', '<', '>', '*', '%', '&', ':', '\\', '?']) {
        return Err(Refusal::new(400, "0x80040203", "The value of 'partitionid' is not a valid partition."));
    }
    Ok(())
}

/// The storage whose key has two parts.
pub(super) fn is_elastic(def: &TableDef) -> bool {
    def.storage == Storage::Elastic
}
