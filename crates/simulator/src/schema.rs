//! Tables and columns as the simulator knows them, and the short notation they are written in.
//!
//! A table is written as one line of words, each a column: `revenue:money4`, `parentaccountid:->account`.
//! From that the module derives what a real environment derives too: the shadow columns of lookups and
//! choices (dataverse 2.2, `AttributeOf`), `_base` companions of money, and the companions of images and
//! files. Rows store only columns with a slot; the others exist in metadata alone.
//!
//! | notation | column |
//! |---|---|
//! | `s160` `email` `url` `phone` `json` | text, with the maximum length or a format |
//! | `memo2000` | long text |
//! | `int` `big` `dec10` `dbl` `money4` `bool` | numbers and yes/no |
//! | `dt` `dtdate` `date` `tzi` | UserLocal, UserLocal with date format, DateOnly, TimeZoneIndependent |
//! | `opt(1,2,3)` `multi(1,2,5)` | choices |
//! | `state(0,1)` `status(1@0,2@1)` | state, the initial one first; statuses with their state, its default first |
//! | `->a\|b` `=>a\|b` | lookup; with `=` the row goes with its parent |
//! | `guid` `image` `file` `body` `entityname` `party` | the rest |
//!
//! A trailing `*` marks the primary name, `^` a column the service sets, `%` a calculated and `$` a secured one,
//! `!` one that cannot be null; `&` hands the owner of the parent down to the row, `#` keeps the parent from being
//! deleted (dataverse 6.14).

use std::fmt::Write as _;

use crate::content::Contents;
use crate::dice::named_guid;
use crate::guid::Guid;

/// How a date column behaves (dataverse 3.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DateBehavior {
    UserLocal { date_format: bool },
    DateOnly,
    TimeZoneIndependent,
}

/// Type of a column, as `AttributeTypeName` tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    Text {
        max: u32,
        format: &'static str,
    },
    Memo {
        max: u32,
    },
    Integer,
    BigInt,
    Decimal {
        precision: u32,
    },
    Double,
    Money {
        precision: u32,
    },
    Boolean,
    Date(DateBehavior),
    Lookup {
        targets: Vec<String>,
        cascade: bool,
    },
    Customer {
        targets: Vec<String>,
        cascade: bool,
    },
    Owner,
    Choice {
        values: Vec<i32>,
    },
    MultiChoice {
        values: Vec<i32>,
    },
    State {
        values: Vec<i32>,
    },
    Status {
        values: Vec<i32>,
        /// The state of each value.
        states: Vec<i32>,
    },
    Guid,
    Image,
    File,
    /// Base64 content kept in the row: `documentbody` and `body` (dataverse 7.3).
    Body,
    EntityName,
    PartyList,
    Virtual,
}

impl Kind {
    /// Logical names a lookup may point to; empty for other kinds.
    pub(crate) fn targets(&self) -> &[String] {
        match self {
            Self::Lookup { targets, .. } | Self::Customer { targets, .. } => targets,
            _ => &[],
        }
    }

    pub(crate) fn is_lookup(&self) -> bool {
        matches!(self, Self::Lookup { .. } | Self::Customer { .. } | Self::Owner)
    }
}

/// Where the value of a column comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Slot {
    /// The row id.
    Key,
    /// The second part of an elastic key.
    Partition,
    /// The row version.
    Version,
    /// A stored cell.
    Cell(usize),
    /// The thumbnail of the image whose id is in this cell.
    Thumbnail(usize),
    /// Nowhere: the column exists in metadata only, and is no property.
    None,
}

/// One column.
#[derive(Debug, Clone)]
#[expect(clippy::struct_excessive_bools, reason = "independent facts, named as in the metadata")]
pub(crate) struct Column {
    pub(crate) name: String,
    pub(crate) kind: Kind,
    pub(crate) slot: Slot,
    /// `AttributeOf`: the column this one is a shadow of.
    pub(crate) shadow_of: Option<String>,
    pub(crate) writable: bool,
    pub(crate) secured: bool,
    pub(crate) calculated: bool,
    /// `SystemRequired`.
    pub(crate) required: bool,
    /// Assigning the parent assigns the row.
    pub(crate) assigns: bool,
    /// The parent cannot be deleted while the row is there.
    pub(crate) restricts: bool,
    pub(crate) number: u32,
}

impl Column {
    /// The name in JSON and in `$select`; `None` for a column that is no property.
    pub(crate) fn property(&self) -> Option<String> {
        if self.slot == Slot::None {
            return None;
        }
        Some(if self.kind.is_lookup() { format!("_{}_value", self.name) } else { self.name.clone() })
    }

    /// `SchemaName`: custom columns keep their prefix in lower case, as customers see it.
    pub(crate) fn schema_name(&self) -> String {
        schema_name(&self.name)
    }
}

/// `new_parent` → `new_Parent`, `name` → `Name`.
pub(crate) fn schema_name(logical: &str) -> String {
    let (prefix, rest) = logical.strip_prefix("new_").map_or(("", logical), |rest| ("new_", rest));
    let mut letters = rest.chars();
    let first = letters.next().map(|letter| letter.to_ascii_uppercase()).unwrap_or_default();
    format!("{prefix}{first}{}", letters.as_str())
}

/// Marks after the type of a column.
const FLAGS: [char; 7] = ['*', '^', '$', '%', '!', '&', '#'];

/// Where the rows of a table live.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Storage {
    Standard,
    Elastic,
    Virtual,
}

/// Who owns the rows, which decides the columns every table of that kind has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ownership {
    User,
    Organization,
    /// No owner and only the columns written out (intersect tables and parts of others).
    None,
}

/// Why rows of a table cannot be read at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unreadable {
    /// RetrieveMultiple is not supported (dataverse 2.8).
    NotSupported,
    /// The caller lacks the privilege (dataverse 9.3).
    NoPrivilege,
    /// The privilege exists, but not for the whole organization: plain reads work, tracked ones do not (dataverse 4.3).
    NotOrganizationWide,
}

/// The two ends of an intersect table.
#[derive(Debug, Clone)]
pub(crate) struct Ends {
    pub(crate) relationship: String,
    pub(crate) first: (String, String),
    pub(crate) second: (String, String),
}

/// One table's definition.
#[derive(Debug, Clone)]
#[expect(clippy::struct_excessive_bools, reason = "independent facts, named as in the metadata")]
pub(crate) struct TableDef {
    pub(crate) name: String,
    pub(crate) set: Option<String>,
    pub(crate) primary_id: String,
    pub(crate) primary_name: Option<String>,
    pub(crate) columns: Vec<Column>,
    /// Number of cells ever used; cells of removed columns are not reused.
    pub(crate) cells: usize,
    pub(crate) storage: Storage,
    pub(crate) ownership: Ownership,
    pub(crate) tracking: bool,
    pub(crate) activity: bool,
    pub(crate) ends: Option<Ends>,
    pub(crate) unreadable: Option<Unreadable>,
    /// The random edits leave the table alone.
    pub(crate) fixed: bool,
    /// Logs of the platform (dataverse 8.16).
    pub(crate) operational: bool,
    pub(crate) type_code: u32,
    /// Alternate key columns.
    pub(crate) key: Option<String>,
    /// `IsOptimisticConcurrencyEnabled` (dataverse 6.13).
    pub(crate) concurrency: bool,
    /// CreateMultiple and UpdateMultiple are offered (dataverse 6.12).
    pub(crate) bulk: bool,
    /// Schema version of the last change, for RetrieveMetadataChanges.
    pub(crate) changed_at: u64,
    /// What was uploaded to the environment; file, image and body cells hold ids into it.
    pub(crate) contents: Contents,
}

impl TableDef {
    pub(crate) fn new(name: &str, set: Option<&str>, primary_id: &str) -> Self {
        let mut table = Self {
            name: name.to_owned(),
            set: set.map(str::to_owned),
            primary_id: primary_id.to_owned(),
            primary_name: None,
            columns: Vec::new(),
            cells: 0,
            storage: Storage::Standard,
            ownership: Ownership::None,
            tracking: true,
            activity: false,
            ends: None,
            unreadable: None,
            fixed: false,
            operational: false,
            type_code: 0,
            key: None,
            concurrency: true,
            bulk: false,
            changed_at: 1,
            contents: Contents::default(),
        };
        table.push(primary_id, Kind::Guid, Slot::Key);
        table
    }

    /// Appends a column without deriving others.
    pub(crate) fn push(&mut self, name: &str, kind: Kind, slot: Slot) -> &mut Column {
        let number = self.columns.last().map_or(1, |column| column.number + 1);
        self.columns.push(Column {
            name: name.to_owned(),
            kind,
            slot,
            shadow_of: None,
            writable: slot != Slot::Version,
            secured: false,
            calculated: false,
            required: false,
            assigns: false,
            restricts: false,
            number,
        });
        self.columns.last_mut().expect("a column was pushed above")
    }

    fn next_cell(&mut self) -> Slot {
        self.cells += 1;
        Slot::Cell(self.cells - 1)
    }

    fn shadow(&mut self, name: &str, kind: Kind, of: &str) {
        let column = self.push(name, kind, Slot::None);
        column.shadow_of = Some(of.to_owned());
        column.writable = false;
    }

    /// Appends columns in the notation of this module, with their shadows and companions.
    pub(crate) fn add(&mut self, notation: &str) {
        for word in notation.split_whitespace() {
            self.add_one(word);
        }
    }

    fn add_one(&mut self, word: &str) {
        let (name, code) = word.split_once(':').expect("a column is written name:type");
        let code_end = code.trim_end_matches(FLAGS).len();
        let (code, flags) = code.split_at(code_end);
        let kind = parse_kind(code);
        if flags.contains('*') {
            self.primary_name = Some(name.to_owned());
        }
        let slot = if kind == Kind::PartyList { Slot::None } else { self.next_cell() };
        let slot = match (&kind, slot) {
            // The cell belongs to the id column, which follows; the thumbnail is made from it when printed.
            (Kind::Image, Slot::Cell(cell)) => Slot::Thumbnail(cell),
            (_, slot) => slot,
        };
        let column = self.push(name, kind.clone(), slot);
        column.writable = !flags.contains(['^', '%']);
        column.secured = flags.contains('$');
        column.calculated = flags.contains('%');
        column.required = flags.contains('!');
        column.assigns = flags.contains('&');
        column.restricts = flags.contains('#');
        self.derive(name, &kind, slot);
    }

    fn derive(&mut self, name: &str, kind: &Kind, slot: Slot) {
        match kind {
            Kind::Money { precision } if !name.ends_with("_base") => {
                let slot = self.next_cell();
                self.push(&format!("{name}_base"), Kind::Money { precision: *precision }, slot).writable = false;
            }
            Kind::Lookup { targets, .. } | Kind::Customer { targets, .. } => {
                self.shadow(&format!("{name}name"), Kind::Text { max: 200, format: "Text" }, name);
                if targets.iter().any(|target| matches!(target.as_str(), "account" | "contact" | "systemuser")) {
                    self.shadow(&format!("{name}yominame"), Kind::Text { max: 200, format: "Text" }, name);
                }
                if targets.len() > 1 {
                    self.shadow(&format!("{name}type"), Kind::EntityName, name);
                }
            }
            Kind::Owner => {
                self.shadow("owneridname", Kind::Text { max: 200, format: "Text" }, name);
                self.shadow("owneridyominame", Kind::Text { max: 200, format: "Text" }, name);
                self.shadow("owneridtype", Kind::EntityName, name);
            }
            Kind::Boolean
            | Kind::Choice { .. }
            | Kind::MultiChoice { .. }
            | Kind::State { .. }
            | Kind::Status { .. } => {
                self.shadow(&format!("{name}name"), Kind::Virtual, name);
            }
            Kind::Image => {
                // Companions of an image (dataverse 7.2); the id sits in the cell of the image itself.
                let Slot::Thumbnail(cell) = slot else { return };
                self.push(&format!("{name}id"), Kind::Guid, Slot::Cell(cell)).writable = false;
                let slot = self.next_cell();
                self.push(&format!("{name}_timestamp"), Kind::BigInt, slot).writable = false;
                let slot = self.next_cell();
                self.push(&format!("{name}_url"), Kind::Text { max: 200, format: "Url" }, slot).writable = false;
            }
            Kind::File => {
                let slot = self.next_cell();
                self.push(&format!("{name}_name"), Kind::Text { max: 255, format: "Text" }, slot).writable = false;
            }
            _ => {}
        }
    }

    /// Appends the columns that every table of this ownership has (dataverse 6.6).
    pub(crate) fn add_common(&mut self, ownership: Ownership) {
        self.ownership = ownership;
        match ownership {
            Ownership::User => {
                let slot = self.next_cell();
                self.push("ownerid", Kind::Owner, slot).required = true;
                self.derive("ownerid", &Kind::Owner, slot);
                self.add("owningbusinessunit:->businessunit^ owninguser:->systemuser^ owningteam:->team^");
            }
            Ownership::Organization => self.add("organizationid:->organization^"),
            Ownership::None => {}
        }
        if ownership != Ownership::None {
            self.add(
                "createdon:dt^ createdby:->systemuser^ createdonbehalfby:->systemuser^ modifiedon:dt^ modifiedby:->systemuser^ \
                 modifiedonbehalfby:->systemuser^ overriddencreatedon:dt importsequencenumber:int timezoneruleversionnumber:int utcconversiontimezonecode:int",
            );
        }
        if self.columns.iter().any(|column| matches!(column.kind, Kind::Money { .. })) {
            self.add("transactioncurrencyid:->transactioncurrency exchangerate:dec10^");
        }
        self.push("versionnumber", Kind::BigInt, Slot::Version);
    }

    /// The column whose property has this name.
    pub(crate) fn property(&self, property: &str) -> Option<&Column> {
        let lookup = property.strip_prefix('_').and_then(|rest| rest.strip_suffix("_value"));
        self.columns.iter().find(|column| {
            column.slot != Slot::None
                && if column.kind.is_lookup() { lookup == Some(column.name.as_str()) } else { column.name == property }
        })
    }

    /// The cell of a stored column, by logical name.
    pub(crate) fn cell(&self, name: &str) -> Option<usize> {
        self.columns.iter().find(|column| column.name == name).and_then(|column| match column.slot {
            Slot::Cell(cell) | Slot::Thumbnail(cell) => Some(cell),
            _ => None,
        })
    }

    /// Column definition by logical name.
    pub(crate) fn column(&self, name: &str) -> Option<&Column> {
        self.columns.iter().find(|column| column.name == name)
    }

    /// States, the initial one first; empty for a table without.
    pub(crate) fn states(&self) -> &[i32] {
        match self.column("statecode").map(|column| &column.kind) {
            Some(Kind::State { values }) => values,
            _ => &[],
        }
    }

    /// Statuses of a state, the default one first.
    pub(crate) fn statuses(&self, state: i32) -> impl Iterator<Item = i32> {
        let (values, states): (&[i32], &[i32]) = match self.column("statuscode").map(|column| &column.kind) {
            Some(Kind::Status { values, states }) => (values, states),
            _ => (&[], &[]),
        };
        values.iter().zip(states).filter(move |(_, of)| **of == state).map(|(value, _)| *value)
    }

    /// Whether a lookup leads to the parent in a hierarchy of the table's own rows (dataverse 8.14).
    pub(crate) fn is_hierarchical(&self, column: &Column) -> bool {
        column.kind.targets() == [self.name.as_str()]
            && column.name.strip_prefix("new_").unwrap_or(&column.name).starts_with("parent")
    }

    /// Whether `If-Match` with an etag works (dataverse 6.13).
    pub(crate) fn has_concurrency(&self) -> bool {
        self.concurrency && self.storage != Storage::Virtual && !self.is_intersect()
    }

    pub(crate) fn is_intersect(&self) -> bool {
        self.ends.is_some()
    }

    pub(crate) fn is_custom(&self) -> bool {
        self.name.starts_with("new_")
    }

    pub(crate) fn metadata_id(&self) -> Guid {
        named_guid(&format!("table {}", self.name))
    }

    /// Navigation property of a lookup towards one target (dataverse 2.4).
    pub(crate) fn navigation(&self, column: &Column, target: &str) -> String {
        let name = &column.name;
        match &column.kind {
            Kind::Lookup { .. } if self.activity && name == "regardingobjectid" => {
                format!("{name}_{target}_{}", self.name)
            }
            kind if kind.targets().len() > 1 => format!("{name}_{target}"),
            _ if name.starts_with("new_") => column.schema_name(),
            _ => name.clone(),
        }
    }
}

fn statuses(code: &str) -> Option<Kind> {
    let inside = code.strip_prefix("status(")?.strip_suffix(')')?;
    let pairs = inside.split(',').filter_map(|pair| {
        let (value, state) = pair.split_once('@')?;
        Some((value.parse::<i32>().ok()?, state.parse::<i32>().ok()?))
    });
    let (values, states) = pairs.unzip();
    Some(Kind::Status { values, states })
}

fn parse_kind(code: &str) -> Kind {
    let number = |prefix: &str| code.strip_prefix(prefix).and_then(|rest| rest.parse::<u32>().ok());
    let list = |prefix: &str| {
        let inside = code.strip_prefix(prefix)?.strip_prefix('(')?.strip_suffix(')')?;
        Some(inside.split(',').filter_map(|value| value.parse().ok()).collect::<Vec<i32>>())
    };
    let lookup = |targets: &str, cascade| {
        let targets: Vec<String> = targets.split('|').map(str::to_owned).collect();
        if targets == ["account", "contact"] {
            Kind::Customer { targets, cascade }
        } else {
            Kind::Lookup { targets, cascade }
        }
    };
    if let Some(targets) = code.strip_prefix("->") {
        return lookup(targets, false);
    }
    if let Some(targets) = code.strip_prefix("=>") {
        return lookup(targets, true);
    }
    match code {
        "email" => Kind::Text { max: 100, format: "Email" },
        "url" => Kind::Text { max: 200, format: "Url" },
        "phone" => Kind::Text { max: 50, format: "Phone" },
        "json" => Kind::Text { max: 1_048_576, format: "Json" },
        "int" => Kind::Integer,
        "big" => Kind::BigInt,
        "dbl" => Kind::Double,
        "bool" => Kind::Boolean,
        "dt" => Kind::Date(DateBehavior::UserLocal { date_format: false }),
        "dtdate" => Kind::Date(DateBehavior::UserLocal { date_format: true }),
        "date" => Kind::Date(DateBehavior::DateOnly),
        "tzi" => Kind::Date(DateBehavior::TimeZoneIndependent),
        "guid" => Kind::Guid,
        "image" => Kind::Image,
        "file" => Kind::File,
        "body" => Kind::Body,
        "entityname" => Kind::EntityName,
        "party" => Kind::PartyList,
        _ => None
            .or_else(|| list("opt").map(|values| Kind::Choice { values }))
            .or_else(|| list("multi").map(|values| Kind::MultiChoice { values }))
            .or_else(|| list("state").map(|values| Kind::State { values }))
            .or_else(|| statuses(code))
            .or_else(|| number("memo").map(|max| Kind::Memo { max }))
            .or_else(|| number("money").map(|precision| Kind::Money { precision }))
            .or_else(|| number("dec").map(|precision| Kind::Decimal { precision }))
            .or_else(|| number("s").map(|max| Kind::Text { max, format: "Text" }))
            .unwrap_or_else(|| {
                let mut message = String::from("unknown column type ");
                message.write_str(code).expect("writing to a string");
                unreachable!("{message}")
            }),
    }
}

#[cfg(test)]
mod tests {
    use super::{Kind, Ownership, Slot, TableDef};

    #[test]
    fn notation_derives_shadows_and_companions() {
        let mut table = TableDef::new("account", Some("accounts"), "accountid");
        table.add("name:s160* revenue:money4 ownertest:->account|contact entityimage:image");
        table.add_common(Ownership::User);
        assert_eq!(table.primary_name.as_deref(), Some("name"));
        for name in [
            "revenue_base",
            "ownertestname",
            "ownertesttype",
            "entityimage_url",
            "owneridtype",
            "transactioncurrencyid",
        ] {
            assert!(table.column(name).is_some(), "{name}");
        }
        assert!(matches!(table.column("ownertest").unwrap().kind, Kind::Customer { .. }));
        assert_eq!(table.column("ownertestname").unwrap().slot, Slot::None);
        assert!(table.property("ownertest").is_none());
        assert!(table.property("_ownertest_value").is_some());
    }
}
