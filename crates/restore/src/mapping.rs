//! Finding the counterparts of users, teams, business units, currencies, roles and queues in another environment.
//!
//! ```text
//!  businessunit          by the path of names, root to root
//!  systemuser            by azureactivedirectoryobjectid, then domainname, then internalemailaddress
//!  team                  default team of the mapped unit; others by name and mapped unit
//!  role                  by name and mapped unit
//!  transactioncurrency   by isocurrencycode; base currencies must be the same
//!  queue                 by name
//! ```
//!
//! (`dataverse` protocol, sections 6.7, 8.4, 8.5.) Texts are compared without regard to case. A key that several rows share
//! matches none of them. What finds no counterpart is listed in the mapping file with the key it was looked for by, for a
//! person to fill; what a person wrote there goes before everything else. Within one organization everything is itself.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;

use dynavault_model::{Row, RowId, TableSchema};
use serde::{Deserialize, Serialize};

use crate::compare::text;
use crate::error::RestoreError;

/// Tables with counterparts, in the order in which they are matched: units first, others lean on them.
pub(crate) const MAPPED_TABLES: [&str; 6] =
    ["businessunit", "systemuser", "team", "role", "transactioncurrency", "queue"];
/// Most units between a unit and its root.
const UNIT_DEPTH_MAX: usize = 64;
/// Largest mapping file: a hundred thousand users take about 10 MB.
const FILE_BYTES_MAX: u64 = 64 << 20;

/// A mapping as it is written down.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MappingFile(pub BTreeMap<String, TableMapping>);

/// Counterparts of the rows of one table.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TableMapping {
    /// Id here by id in the snapshot.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub matched: BTreeMap<String, String>,
    /// Rows without a counterpart, for a person to fill.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unmatched: Vec<Unmatched>,
}

/// A row without a counterpart.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Unmatched {
    /// Id in the snapshot.
    pub source: String,
    /// The key it was looked for by.
    pub looked_for: String,
    /// Id here, once a person has filled it; empty until then.
    #[serde(default)]
    pub target: String,
}

impl MappingFile {
    /// Reads a mapping file; an absent one is empty.
    pub fn read(path: &Path) -> Result<Self, RestoreError> {
        let refused = |reason: String| {
            RestoreError::Selection {
            reason: format!("the mapping file {} cannot be used: {reason}", path.display()),
            remedy: "sections are tables; each has matched = { \"source id\" = \"target id\" } and [[TABLE.unmatched]] with source, looked_for, target".into(),
        }
        };
        let file = |source| RestoreError::File { path: path.to_path_buf(), source };
        match std::fs::metadata(path) {
            Ok(metadata) if metadata.len() > FILE_BYTES_MAX => {
                return Err(refused(format!("it is larger than {FILE_BYTES_MAX} bytes")));
            }
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(file(error)),
        }
        let text = std::fs::read_to_string(path).map_err(file)?;
        let read: Self = toml::from_str(&text).map_err(|error| refused(error.message().to_string()))?;
        for (table, mapping) in &read.0 {
            let filled = mapping.unmatched.iter().filter(|entry| !entry.target.is_empty());
            let pairs = mapping.matched.iter().chain(filled.map(|entry| (&entry.source, &entry.target)));
            for id in pairs.flat_map(|(source, target)| [source, target]) {
                if RowId::from_guid(id.as_bytes()).is_none() {
                    return Err(refused(format!("section {table} has an id that is none")));
                }
            }
        }
        Ok(read)
    }

    /// Writes the file with mode 0600; it names people.
    pub fn write(&self, path: &Path) -> Result<(), RestoreError> {
        let file = |source| RestoreError::File { path: path.to_path_buf(), source };
        let text = toml::to_string_pretty(self).map_err(|error| file(std::io::Error::other(error)))?;
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut out = tempfile::NamedTempFile::new_in(folder).map_err(file)?;
        let head = "# Counterparts of rows of the snapshot in the environment that is restored to.\n\
                    # Fill `target` where it is empty, then make the plan again.\n\n";
        out.write_all(head.as_bytes()).and_then(|()| out.write_all(text.as_bytes())).map_err(file)?;
        out.persist(path).map_err(|error| file(error.error))?;
        Ok(())
    }

    fn pairs(&self, table: &str) -> HashMap<RowId, RowId> {
        let Some(mapping) = self.0.get(table) else { return HashMap::new() };
        let filled = mapping.unmatched.iter().filter(|entry| !entry.target.is_empty());
        let pairs = mapping.matched.iter().chain(filled.map(|entry| (&entry.source, &entry.target)));
        let id = |text: &String| RowId::from_guid(text.as_bytes());
        pairs.filter_map(|(source, target)| Some((id(source)?, id(target)?))).collect()
    }
}

/// What a row is known by in every environment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Known {
    pub(crate) id: Option<RowId>,
    /// Keys with their names, the best first.
    keys: Vec<(&'static str, String)>,
    /// Business unit; for a unit, the one above.
    unit: Option<RowId>,
    /// Default team of its unit.
    is_default: bool,
}

impl Known {
    /// Reads what a row is known by.
    pub(crate) fn read(table: &str, schema: &TableSchema, row: &Row<'_>) -> Option<Self> {
        let names: &[&'static str] = match table {
            "systemuser" => &["azureactivedirectoryobjectid", "domainname", "internalemailaddress"],
            "transactioncurrency" => &["isocurrencycode"],
            _ => &["name"],
        };
        let value = |member: &str| row.get(member).and_then(text).filter(|text| !text.is_empty());
        let keys = names.iter().filter_map(|name| Some((*name, value(name)?.to_lowercase()))).collect();
        let unit = if table == "businessunit" { "_parentbusinessunitid_value" } else { "_businessunitid_value" };
        Some(Self {
            id: Some(schema.row_id(row)?),
            keys,
            unit: value(unit).and_then(|text| RowId::from_guid(text.as_bytes())),
            is_default: row.get("isdefault") == Some(b"true"),
        })
    }

    fn words(&self) -> String {
        let mut words = String::new();
        for (name, value) in &self.keys {
            let _infallible = write!(words, "{}{name}={value}", if words.is_empty() { "" } else { ", " });
        }
        words
    }
}

/// Where a row's counterpart is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mapped {
    /// The row itself, under its own id.
    Same,
    /// Another row.
    To(RowId),
    /// Nowhere.
    Unmapped,
}

/// Counterparts of rows.
#[derive(Debug, Default)]
pub(crate) struct Mapping {
    /// The environments are the same; everything is itself.
    pub(crate) identity: bool,
    matched: HashMap<&'static str, HashMap<RowId, RowId>>,
    looked_for: HashMap<&'static str, HashMap<RowId, String>>,
    /// Rows that were asked for and have no counterpart.
    wanted: HashSet<(&'static str, RowId)>,
}

impl Mapping {
    /// Everything is itself.
    pub(crate) fn identity() -> Self {
        Self { identity: true, ..Self::default() }
    }

    /// Matches rows of the snapshot with live ones, by table; what `file` says goes first.
    pub(crate) fn new(
        captured: &HashMap<&'static str, Vec<Known>>,
        live: &HashMap<&'static str, Vec<Known>>,
        file: &MappingFile,
    ) -> Result<Self, RestoreError> {
        let mut mapping = Self::default();
        let none = Vec::new();
        for table in MAPPED_TABLES {
            let (captured, live) = (captured.get(table).unwrap_or(&none), live.get(table).unwrap_or(&none));
            let said = file.pairs(table);
            let ids: HashSet<RowId> = live.iter().filter_map(|row| row.id).collect();
            if let Some((_, target)) = said.iter().find(|(_, target)| !ids.contains(target)) {
                return Err(RestoreError::Selection {
                    reason: format!("the mapping file names {table} {target}, which the environment does not have"),
                    remedy: "correct the entry, or leave its target empty".into(),
                });
            }
            let (matched, looked_for) = mapping.match_table(table, captured, live, &said);
            mapping.matched.insert(table, matched);
            mapping.looked_for.insert(table, looked_for);
        }
        Ok(mapping)
    }

    fn match_table(
        &self,
        table: &'static str,
        captured: &[Known],
        live: &[Known],
        said: &HashMap<RowId, RowId>,
    ) -> (HashMap<RowId, RowId>, HashMap<RowId, String>) {
        let mut matched = said.clone();
        let mut looked_for = HashMap::new();
        let units = self.matched.get("businessunit");
        let paths = |rows: &[Known]| if table == "businessunit" { paths(rows) } else { HashMap::new() };
        let (captured_paths, live_paths) = (paths(captured), paths(live));
        let mut index: HashMap<(&str, String), Option<RowId>> = HashMap::new();
        for row in live {
            let Some(id) = row.id else { continue };
            for key in keys_of(table, row, row.unit, live_paths.get(&id)) {
                // A key that two rows share says nothing.
                index.entry(key).and_modify(|found| *found = found.filter(|found| *found == id)).or_insert(Some(id));
            }
        }
        for row in captured {
            let Some(id) = row.id.filter(|id| !matched.contains_key(id)) else { continue };
            let unit = row.unit.and_then(|unit| units.and_then(|units| units.get(&unit)).copied());
            let keys = keys_of(table, row, unit, captured_paths.get(&id));
            // The first key that anything has decides: a mail address must not overrule an account id.
            match keys.iter().find_map(|key| index.get(key)) {
                Some(Some(target)) => {
                    matched.insert(id, *target);
                }
                Some(None) => {
                    looked_for.insert(id, format!("{} (several rows have it)", row.words()));
                }
                None => {
                    looked_for.insert(id, captured_paths.get(&id).cloned().unwrap_or_else(|| row.words()));
                }
            }
        }
        (matched, looked_for)
    }

    /// The row of the environment that a row of the snapshot stands for, if that is another one.
    pub(crate) fn counterpart(&self, table: &str, id: RowId) -> Option<RowId> {
        self.matched.get(table)?.get(&id).copied().filter(|target| !self.identity && *target != id)
    }

    /// The counterpart of a row.
    pub(crate) fn map(&mut self, table: &str, id: RowId) -> Mapped {
        if self.identity {
            return Mapped::Same;
        }
        let Some(table) = MAPPED_TABLES.iter().find(|mapped| **mapped == table) else { return Mapped::Same };
        if let Some(target) = self.matched.get(table).and_then(|matched| matched.get(&id)) {
            return Mapped::To(*target);
        }
        self.wanted.insert((table, id));
        Mapped::Unmapped
    }

    /// The mapping as a file, with the rows that were asked for and have no counterpart.
    pub(crate) fn file(&self) -> MappingFile {
        let mut file = MappingFile::default();
        for (table, matched) in self.matched.iter().filter(|(_, matched)| !matched.is_empty()) {
            let section = file.0.entry((*table).to_string()).or_default();
            section.matched = matched.iter().map(|(source, target)| (source.to_string(), target.to_string())).collect();
        }
        let mut wanted: Vec<_> = self.wanted.iter().collect();
        wanted.sort_unstable();
        for (table, id) in wanted {
            let looked_for = self.looked_for.get(table).and_then(|rows| rows.get(id));
            file.0.entry((*table).to_string()).or_default().unmatched.push(Unmatched {
                source: id.to_string(),
                looked_for: looked_for.cloned().unwrap_or_else(|| "its row is not in the snapshot".into()),
                target: String::new(),
            });
        }
        file
    }
}

/// Refuses environments with different base currencies.
pub(crate) fn check_base_currency(captured: Option<&Known>, live: Option<&Known>) -> Result<(), RestoreError> {
    let code = |row: Option<&Known>| row.and_then(|row| row.keys.first()).map(|(_, code)| code.to_uppercase());
    match (code(captured), code(live)) {
        (Some(captured), Some(live)) if captured != live => Err(RestoreError::Selection {
            reason: format!("the snapshot has base currency {captured}, the environment has {live}"),
            remedy: "amounts would change their meaning; restore into an environment with the same base currency"
                .into(),
        }),
        _ => Ok(()),
    }
}

/// What a row may be found by, the best first. `unit` is an id of the environment that is restored to.
fn keys_of(table: &str, row: &Known, unit: Option<RowId>, path: Option<&String>) -> Vec<(&'static str, String)> {
    match table {
        "businessunit" => path.map(|path| ("path", path.clone())).into_iter().collect(),
        "team" | "role" => {
            let Some(unit) = unit else { return Vec::new() };
            if row.is_default {
                return vec![("default team of", unit.to_string())];
            }
            row.keys.iter().map(|(name, value)| (*name, format!("{unit}/{value}"))).collect()
        }
        _ => row.keys.clone(),
    }
}

/// Paths of names from the root, without the root's own name, which is that of the organization.
fn paths(rows: &[Known]) -> HashMap<RowId, String> {
    let units: HashMap<RowId, &Known> = rows.iter().filter_map(|row| Some((row.id?, row))).collect();
    let mut paths = HashMap::new();
    for (id, row) in &units {
        let mut names: Vec<&str> = Vec::new();
        let mut at = *row;
        let whole = loop {
            let Some(above) = at.unit else { break true };
            names.push(at.keys.first().map_or("", |(_, name)| name.as_str()));
            match units.get(&above) {
                Some(above) if names.len() < UNIT_DEPTH_MAX => at = above,
                _ => break false,
            }
        };
        if whole {
            names.push("");
            names.reverse();
            paths.insert(*id, names.join("/") + if names.len() == 1 { "/" } else { "" });
        }
    }
    paths
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u8) -> RowId {
        RowId([n; 16])
    }

    fn known(n: u8, keys: &[(&'static str, &str)], unit: Option<u8>) -> Known {
        let keys = keys.iter().map(|(name, value)| (*name, (*value).to_string())).collect();
        Known { id: Some(id(n)), keys, unit: unit.map(id), is_default: false }
    }

    fn mapping(
        captured: Vec<(&'static str, Vec<Known>)>,
        live: Vec<(&'static str, Vec<Known>)>,
        file: &MappingFile,
    ) -> Mapping {
        Mapping::new(&captured.into_iter().collect(), &live.into_iter().collect(), file).unwrap()
    }

    const OBJECT: &str = "azureactivedirectoryobjectid";

    #[test]
    fn units_are_found_by_path_and_the_root_by_being_the_root() {
        let captured = vec![
            known(1, &[("name", "contoso")], None),
            known(2, &[("name", "sales")], Some(1)),
            known(3, &[("name", "north")], Some(2)),
            known(4, &[("name", "lost")], Some(9)),
        ];
        let live = vec![
            known(11, &[("name", "contoso test")], None),
            known(12, &[("name", "sales")], Some(11)),
            known(13, &[("name", "north")], Some(12)),
            known(14, &[("name", "north")], Some(11)),
        ];
        let mut mapping =
            mapping(vec![("businessunit", captured)], vec![("businessunit", live)], &MappingFile::default());
        for (source, expected) in
            [(1, Mapped::To(id(11))), (2, Mapped::To(id(12))), (3, Mapped::To(id(13))), (4, Mapped::Unmapped)]
        {
            assert_eq!(mapping.map("businessunit", id(source)), expected, "{source}");
        }
        assert_eq!(mapping.map("account", id(1)), Mapped::Same);
        assert_eq!(Mapping::identity().map("businessunit", id(4)), Mapped::Same);
    }

    #[test]
    fn users_are_found_by_their_best_key_and_never_by_a_shared_one() {
        let captured = vec![
            known(1, &[(OBJECT, "o1"), ("domainname", "a@x"), ("internalemailaddress", "a@x")], None),
            known(2, &[("domainname", "b@x")], None),
            known(3, &[("internalemailaddress", "shared@x")], None),
            known(4, &[(OBJECT, "o4"), ("domainname", "d@x")], None),
        ];
        let live = vec![
            known(11, &[(OBJECT, "o1"), ("domainname", "renamed@x")], None),
            known(12, &[(OBJECT, "o2"), ("domainname", "b@x"), ("internalemailaddress", "shared@x")], None),
            known(13, &[("domainname", "c@x"), ("internalemailaddress", "shared@x")], None),
        ];
        let live = vec![("systemuser", live)];
        let mut found = mapping(vec![("systemuser", captured.clone())], live.clone(), &MappingFile::default());
        assert_eq!(found.map("systemuser", id(1)), Mapped::To(id(11)));
        assert_eq!(found.map("systemuser", id(2)), Mapped::To(id(12)));
        assert_eq!(found.map("systemuser", id(3)), Mapped::Unmapped);
        assert_eq!(found.map("systemuser", id(4)), Mapped::Unmapped);

        // A person fills one of the gaps, in the file that was written.
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("map.toml");
        let mut file = found.file();
        assert_eq!(file.0["systemuser"].unmatched.len(), 2);
        assert_eq!(
            file.0["systemuser"].unmatched[0].looked_for,
            "internalemailaddress=shared@x (several rows have it)"
        );
        assert_eq!(file.0["systemuser"].unmatched[1].looked_for, format!("{OBJECT}=o4, domainname=d@x"));
        file.0.get_mut("systemuser").unwrap().unmatched[1].target = id(13).to_string();
        file.write(&path).unwrap();
        let read = MappingFile::read(&path).unwrap();
        assert_eq!(read, file);
        let mut again = mapping(vec![("systemuser", captured)], live, &read);
        assert_eq!(again.map("systemuser", id(4)), Mapped::To(id(13)));
        assert_eq!(again.map("systemuser", id(3)), Mapped::Unmapped);
        assert_eq!(again.file().0["systemuser"].unmatched.len(), 1);
    }

    #[test]
    fn teams_and_roles_are_found_within_their_unit() {
        let default = |n, unit| Known { is_default: true, ..known(n, &[("name", "whatever")], Some(unit)) };
        let captured = vec![
            ("businessunit", vec![known(1, &[("name", "a")], None)]),
            ("team", vec![default(2, 1), known(3, &[("name", "t")], Some(1))]),
            ("role", vec![known(4, &[("name", "r")], Some(1))]),
        ];
        let live = vec![
            ("businessunit", vec![known(11, &[("name", "b")], None), known(21, &[("name", "c")], Some(11))]),
            (
                "team",
                vec![default(12, 11), known(13, &[("name", "t")], Some(11)), known(23, &[("name", "t")], Some(21))],
            ),
            ("role", vec![known(24, &[("name", "r")], Some(21)), known(14, &[("name", "r")], Some(11))]),
        ];
        let mut mapping = mapping(captured, live, &MappingFile::default());
        assert_eq!(mapping.map("team", id(2)), Mapped::To(id(12)));
        assert_eq!(mapping.map("team", id(3)), Mapped::To(id(13)));
        assert_eq!(mapping.map("role", id(4)), Mapped::To(id(14)));
    }

    #[test]
    fn a_file_with_wrong_ids_or_words_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("map.toml");
        assert_eq!(MappingFile::read(&path).unwrap(), MappingFile::default());
        std::fs::write(&path, "[systemuser.matched]\n\"x\" = \"y\"\n").unwrap();
        assert!(MappingFile::read(&path).unwrap_err().to_string().contains("an id that is none"));
        std::fs::write(&path, "[systemuser]\nmatch = {}\n").unwrap();
        assert!(MappingFile::read(&path).unwrap_err().to_string().contains("unknown field"));
        std::fs::write(&path, format!("[systemuser.matched]\n\"{}\" = \"{}\"\n", id(1), id(99))).unwrap();
        let file = MappingFile::read(&path).unwrap();
        let error = Mapping::new(&HashMap::new(), &HashMap::new(), &file).unwrap_err();
        assert!(error.to_string().contains("does not have"));
    }

    #[test]
    fn different_base_currencies_are_refused() {
        let currency = |code: &str| known(1, &[("isocurrencycode", code)], None);
        check_base_currency(Some(&currency("eur")), Some(&currency("EUR"))).unwrap();
        check_base_currency(Some(&currency("eur")), None).unwrap();
        assert!(check_base_currency(Some(&currency("eur")), Some(&currency("usd"))).is_err());
    }
}
