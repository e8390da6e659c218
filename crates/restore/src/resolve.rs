//! Where a lookup leads in the environment: to a row that is there, to one that the plan makes, or to nothing.
//!
//! Rows outside of the plan are noted and asked for later, in blocks: until then a lookup to one is a [`Node`] like one to a
//! row that the plan makes.

use std::collections::HashMap;

use dynavault_model::RowId;

use crate::compare::Reference;
use crate::live::State;
use crate::mapping::{Mapped, Mapping};
use crate::project::reason;
use crate::tables::{Role, Tables};
use crate::waves::Node;

/// Rows that are named by the plan and are not in it.
#[derive(Debug, Default)]
pub(crate) struct Outside {
    base: u16,
    numbers: HashMap<String, u16>,
    names: Vec<String>,
    ids: Vec<HashMap<RowId, u32>>,
    found: Vec<Vec<bool>>,
}

impl Outside {
    /// Numbers outside tables from `base`, the number of tables of the snapshot.
    pub(crate) fn new(base: u16) -> Self {
        Self { base, ..Self::default() }
    }

    pub(crate) fn node(&mut self, table: &str, id: RowId) -> Node {
        let at = if let Some(at) = self.numbers.get(table) {
            *at
        } else {
            let at = self.names.len() as u16;
            self.numbers.insert(table.to_string(), at);
            self.names.push(table.to_string());
            self.ids.push(HashMap::new());
            at
        };
        let ids = &mut self.ids[usize::from(at)];
        let next = ids.len() as u32;
        let row = *ids.entry(id).or_insert(next);
        Node { table: self.base + at, row }
    }

    /// Rows to ask for, by table.
    pub(crate) fn asked(&self) -> Vec<(String, Vec<RowId>)> {
        let sorted = |ids: &HashMap<RowId, u32>| {
            let mut ids: Vec<RowId> = ids.keys().copied().collect();
            ids.sort_unstable();
            ids
        };
        self.names.iter().zip(&self.ids).map(|(name, ids)| (name.clone(), sorted(ids))).collect()
    }

    /// Takes the answer: ids that exist, for each table in the order of [`Self::asked`].
    pub(crate) fn answered(&mut self, found: &[Vec<RowId>]) {
        self.found = self
            .ids
            .iter()
            .zip(found)
            .map(|(ids, found)| {
                let mut flags = vec![false; ids.len()];
                for id in found {
                    if let Some(row) = ids.get(id) {
                        flags[*row as usize] = true;
                    }
                }
                flags
            })
            .collect();
    }

    fn is_found(&self, node: Node) -> bool {
        let at = usize::from(node.table - self.base);
        self.found.get(at).and_then(|flags| flags.get(node.row as usize)).copied().unwrap_or(false)
    }

    fn name(&self, node: Node) -> &str {
        self.names.get(usize::from(node.table - self.base)).map_or("", String::as_str)
    }

    fn id(&self, node: Node) -> Option<RowId> {
        let ids = self.ids.get(usize::from(node.table - self.base))?;
        ids.iter().find(|(_, row)| **row == node.row).map(|(id, _)| *id)
    }
}

/// Whether a row can be named.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Presence {
    /// It is there.
    Live,
    /// The plan makes it.
    Planned,
    /// Neither.
    Missing,
}

/// Whether the row of a node can be named.
pub(crate) fn presence(tables: &Tables, outside: &Outside, node: Node) -> Presence {
    if node.table >= tables.len() {
        return if outside.is_found(node) { Presence::Live } else { Presence::Missing };
    }
    match tables.get(node.table).state(node.row) {
        State::Same | State::Differs(_) => Presence::Live,
        State::Absent | State::Binned => Presence::Planned,
        State::Unmade => Presence::Missing,
    }
}

/// A row in words: table and id.
pub(crate) fn words(tables: &Tables, outside: &Outside, node: Node) -> String {
    if node.table >= tables.len() {
        let id = outside.id(node).map(|id| id.to_string()).unwrap_or_default();
        return format!("{} {id}", outside.name(node));
    }
    let table = tables.get(node.table);
    let id = table.ids.get(node.row as usize).map(ToString::to_string).unwrap_or_default();
    format!("{} {id}", table.name)
}

/// Where a lookup leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Led {
    /// Id in the environment.
    pub(crate) id: RowId,
    /// The row, where it is not certain that it is there.
    pub(crate) node: Option<Node>,
}

/// Finds where lookups lead.
pub(crate) struct Resolver<'a> {
    pub(crate) tables: &'a Tables,
    pub(crate) mapping: &'a mut Mapping,
    pub(crate) outside: &'a mut Outside,
}

impl Resolver<'_> {
    /// Where a lookup leads; otherwise the code why it leads nowhere.
    pub(crate) fn lead(&mut self, reference: &Reference) -> Result<Led, &'static str> {
        let Some(table) = reference.table.as_deref() else { return Err(reason::NO_TARGET) };
        let id = reference.id;
        // A team or queue that has a counterpart is not made again, though the plan may have its row.
        if let Some(id) = self.mapping.counterpart(table, id) {
            return Ok(Led { id, node: None });
        }
        if let Some(node) = self.tables.find(table, id) {
            let state = self.tables.get(node.table).state(node.row);
            let live = matches!(state, State::Same | State::Differs(_));
            return Ok(Led { id, node: Some(node).filter(|_| !live) });
        }
        match self.mapping.map(table, id) {
            Mapped::To(id) => return Ok(Led { id, node: None }),
            Mapped::Unmapped if self.is_reference(table) => return Err(reason::UNMAPPED),
            // Teams and queues may have been restored with their own ids.
            Mapped::Unmapped | Mapped::Same => {}
        }
        if !self.mapping.identity && self.is_reference(table) {
            return Err(reason::UNMAPPED);
        }
        Ok(Led { id, node: Some(self.outside.node(table, id)) })
    }

    fn is_reference(&self, table: &str) -> bool {
        let role = self.tables.number(table).map(|number| &self.tables.get(number).role);
        // A table that is not in the snapshot is not known to be one of its own rows.
        matches!(role, Some(Role::Left("reference", _)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_outside_are_numbered_once_and_remember_the_answer() {
        let mut outside = Outside::new(3);
        let id = |n: u8| RowId([n; 16]);
        let first = outside.node("contact", id(2));
        assert_eq!(first, Node { table: 3, row: 0 });
        assert_eq!(outside.node("contact", id(1)), Node { table: 3, row: 1 });
        assert_eq!(outside.node("contact", id(2)), first);
        let unit = outside.node("businessunit", id(2));
        assert_eq!(unit, Node { table: 4, row: 0 });
        let tables = Tables::default();
        assert_eq!(presence(&tables, &outside, Node { table: 3, row: 0 }), Presence::Missing);
        assert_eq!(
            outside.asked(),
            [("contact".to_string(), vec![id(1), id(2)]), ("businessunit".to_string(), vec![id(2)])]
        );
        outside.answered(&[vec![id(2)], vec![]]);
        assert_eq!(presence(&tables, &outside, first), Presence::Live);
        assert_eq!(presence(&tables, &outside, unit), Presence::Missing);
        assert_eq!(words(&tables, &outside, unit), format!("businessunit {}", id(2)));
    }
}
