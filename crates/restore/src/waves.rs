//! The order in which tables are written, so that a row never names one that is not there yet.
//!
//! ```text
//!  edges between tables, from rows that will be made to rows that will be made
//!     │  strongly connected components over all edges               (account ⇄ contact: one component)
//!     │  inside a component, components over the hard edges only    (a required lookup cannot wait)
//!     ▼
//!  wave of a table = 1 + the highest wave of the tables it must follow
//!  rows of a component of hard edges: one more wave for every step of a chain of required lookups
//! ```
//!
//! A lookup is written along with its row when the row it names has an earlier wave; every other lookup waits for the step of
//! lookups (`dataverse` protocol, section 6.17, steps 1 and 2). A circle of required lookups cannot be written at all: its
//! rows are reported.

use std::collections::{BTreeMap, BTreeSet, HashMap};

/// A row by the number of its table and its place in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub(crate) struct Node {
    pub(crate) table: u16,
    pub(crate) row: u32,
}

/// Lookups among rows that will be made.
#[derive(Debug, Default)]
pub(crate) struct Edges {
    /// Pairs of tables (from, to); true when some lookup of the pair cannot wait.
    tables: BTreeMap<(u16, u16), bool>,
    /// Lookups that cannot wait: (from, to).
    pub(crate) hard: Vec<(Node, Node)>,
}

impl Edges {
    /// Adds a lookup. A hard one has to be written along with its row.
    pub(crate) fn add(&mut self, from: Node, to: Node, hard: bool) {
        *self.tables.entry((from.table, to.table)).or_default() |= hard;
        if hard {
            self.hard.push((from, to));
        }
    }
}

/// When tables and rows are written.
#[derive(Debug, Default)]
pub(crate) struct Waves {
    tables: HashMap<u16, u32>,
    /// Waves after the one of its table, for rows in chains of required lookups within a component.
    levels: HashMap<Node, u32>,
    /// Rows in circles of required lookups.
    pub(crate) circles: Vec<Node>,
}

impl Waves {
    /// Computes waves for these tables.
    pub(crate) fn new(tables: impl IntoIterator<Item = u16>, edges: &Edges) -> Self {
        let tables: BTreeSet<u16> =
            tables.into_iter().chain(edges.tables.keys().flat_map(|(from, to)| [*from, *to])).collect();
        let all = components(&tables, |from, to| edges.tables.contains_key(&(from, to)));
        // Within a component only hard edges order; between components every edge does.
        let binds = |from: u16, to: u16| match edges.tables.get(&(from, to)) {
            Some(hard) => *hard || all[&from] != all[&to],
            None => false,
        };
        let bound = components(&tables, binds);
        let (levels, circles) = levels(&edges.hard, &bound);
        let mut heights: HashMap<usize, u32> = HashMap::new();
        for (node, level) in &levels {
            let height = heights.entry(bound[&node.table]).or_default();
            *height = (*height).max(*level);
        }
        // Components come numbered in the order of their edges: what is pointed to has the lower number.
        let mut groups: BTreeMap<usize, Vec<u16>> = BTreeMap::new();
        for table in &tables {
            groups.entry(bound[table]).or_default().push(*table);
        }
        let mut starts: HashMap<usize, u32> = HashMap::new();
        for (number, members) in &groups {
            let mut start = 0;
            for (from, to) in edges.tables.keys().filter(|(from, to)| members.contains(from) && binds(*from, *to)) {
                let (_, before) = (from, bound[to]);
                if before != *number {
                    let after = starts[&before] + heights.get(&before).copied().unwrap_or(0) + 1;
                    start = start.max(after);
                }
            }
            starts.insert(*number, start);
        }
        let waves = tables.iter().map(|table| (*table, starts[&bound[table]])).collect();
        Self { tables: waves, levels, circles }
    }

    /// The first wave of a table.
    pub(crate) fn table(&self, table: u16) -> u32 {
        self.tables.get(&table).copied().unwrap_or(0)
    }

    /// The wave of a row.
    pub(crate) fn row(&self, node: Node) -> u32 {
        self.table(node.table) + self.levels.get(&node).copied().unwrap_or(0)
    }

    /// The highest wave.
    pub(crate) fn last(&self) -> u32 {
        let rows = self.levels.keys().map(|node| self.row(*node)).max().unwrap_or(0);
        self.tables.values().copied().max().unwrap_or(0).max(rows)
    }
}

/// Levels of rows in chains of hard lookups within a component, and the rows of circles.
fn levels(hard: &[(Node, Node)], bound: &HashMap<u16, usize>) -> (HashMap<Node, u32>, Vec<Node>) {
    let mut waiting: HashMap<Node, u32> = HashMap::new();
    let mut followers: HashMap<Node, Vec<Node>> = HashMap::new();
    for (from, to) in hard.iter().filter(|(from, to)| bound[&from.table] == bound[&to.table]) {
        *waiting.entry(*from).or_default() += 1;
        waiting.entry(*to).or_default();
        followers.entry(*to).or_default().push(*from);
    }
    let mut ready: Vec<Node> = waiting.iter().filter(|(_, count)| **count == 0).map(|(node, _)| *node).collect();
    let mut levels: HashMap<Node, u32> = HashMap::new();
    while let Some(node) = ready.pop() {
        let next = levels.get(&node).copied().unwrap_or(0) + 1;
        waiting.remove(&node);
        for follower in followers.remove(&node).unwrap_or_default() {
            let level = levels.entry(follower).or_default();
            *level = (*level).max(next);
            if let Some(count) = waiting.get_mut(&follower) {
                *count -= 1;
                if *count == 0 {
                    ready.push(follower);
                }
            }
        }
    }
    let mut circles: Vec<Node> = waiting.into_keys().collect();
    circles.sort_unstable();
    for node in &circles {
        levels.remove(node);
    }
    (levels, circles)
}

/// Strongly connected components by Tarjan's algorithm, without recursion: a component's number is lower than that of every
/// component that points to it.
fn components(nodes: &BTreeSet<u16>, edge: impl Fn(u16, u16) -> bool) -> HashMap<u16, usize> {
    struct Visit {
        node: u16,
        next: std::vec::IntoIter<u16>,
    }
    let followed = |node: u16| -> std::vec::IntoIter<u16> {
        nodes.iter().copied().filter(|to| edge(node, *to)).collect::<Vec<_>>().into_iter()
    };
    let mut index: HashMap<u16, usize> = HashMap::new();
    let mut low: HashMap<u16, usize> = HashMap::new();
    let mut open: Vec<u16> = Vec::new();
    let mut found: HashMap<u16, usize> = HashMap::new();
    let mut count = 0;
    for start in nodes {
        if index.contains_key(start) {
            continue;
        }
        let mut path = vec![Visit { node: *start, next: followed(*start) }];
        index.insert(*start, index.len());
        low.insert(*start, index[start]);
        open.push(*start);
        while let Some(visit) = path.last_mut() {
            let node = visit.node;
            if let Some(to) = visit.next.next() {
                if !index.contains_key(&to) {
                    index.insert(to, index.len());
                    low.insert(to, index[&to]);
                    open.push(to);
                    path.push(Visit { node: to, next: followed(to) });
                } else if !found.contains_key(&to) {
                    let lowest = low[&node].min(index[&to]);
                    low.insert(node, lowest);
                }
                continue;
            }
            path.pop();
            if let Some(before) = path.last() {
                let lowest = low[&before.node].min(low[&node]);
                low.insert(before.node, lowest);
            }
            if low[&node] == index[&node] {
                while let Some(member) = open.pop() {
                    found.insert(member, count);
                    if member == node {
                        break;
                    }
                }
                count += 1;
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn node(table: u16, row: u32) -> Node {
        Node { table, row }
    }

    fn waves(edges: &[(Node, Node, bool)]) -> (Waves, Edges) {
        let mut collected = Edges::default();
        for (from, to, hard) in edges {
            collected.add(*from, *to, *hard);
        }
        (Waves::new([], &collected), collected)
    }

    #[test]
    fn parents_come_before_children_and_independent_tables_share_a_wave() {
        // 2 → 1 → 0, 3 → 0, 4 alone.
        let mut edges = Edges::default();
        edges.add(node(2, 0), node(1, 0), false);
        edges.add(node(1, 0), node(0, 0), true);
        edges.add(node(3, 0), node(0, 0), false);
        let waves = Waves::new([4], &edges);
        assert_eq!([0, 1, 2, 3, 4].map(|table| waves.table(table)), [0, 1, 2, 1, 0]);
        assert_eq!(waves.last(), 2);
    }

    #[test]
    fn a_circle_of_tables_breaks_at_its_optional_lookups() {
        // Account ⇄ contact, where the contact requires its account.
        let (waves, _) = waves(&[(node(0, 0), node(1, 0), false), (node(1, 0), node(0, 0), true)]);
        assert!(waves.circles.is_empty());
        assert!(waves.row(node(1, 0)) > waves.row(node(0, 0)));
    }

    #[test]
    fn chains_of_required_lookups_within_a_table_get_waves_of_their_own() {
        let chain: Vec<_> = (1..5).map(|row| (node(0, row), node(0, row - 1), true)).collect();
        let (waves, _) = waves(&[&chain[..], &[(node(1, 0), node(0, 4), false)]].concat());
        assert_eq!((0..5).map(|row| waves.row(node(0, row))).collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
        assert_eq!(waves.table(1), 5);
    }

    #[test]
    fn circles_of_required_lookups_are_named() {
        let (waves, _) = waves(&[
            (node(0, 0), node(1, 0), true),
            (node(1, 0), node(0, 0), true),
            (node(0, 7), node(1, 0), true),
            (node(0, 8), node(1, 8), true),
        ]);
        assert_eq!(waves.circles, [node(0, 0), node(0, 7), node(1, 0)]);
        assert!(waves.row(node(0, 8)) > waves.row(node(1, 8)));
    }

    proptest! {
        #[test]
        fn every_row_that_a_required_lookup_names_is_made_before(
            edges in prop::collection::vec((0_u16..8, 0_u32..6, 0_u16..8, 0_u32..6, any::<bool>()), 0..120)
        ) {
            let edges: Vec<_> = edges.into_iter().map(|(a, b, c, d, hard)| (node(a, b), node(c, d), hard)).collect();
            let (waves, _) = waves(&edges);
            let circles: BTreeSet<Node> = waves.circles.iter().copied().collect();
            for (from, to, hard) in &edges {
                // What is not in an earlier wave waits for the step of lookups, which comes after all rows; a hard lookup
                // cannot wait.
                if *hard && !circles.contains(from) && !circles.contains(to) {
                    prop_assert!(waves.row(*to) < waves.row(*from), "{from:?} needs {to:?}");
                }
            }
            // A row is in a circle only if required lookups lead from it into one.
            for row in &circles {
                prop_assert!(edges.iter().any(|(from, to, hard)| *hard && from == row && circles.contains(to)));
            }
            // Without any circle among the tables nothing has to wait.
            let tables: BTreeSet<(u16, u16)> = edges.iter().map(|(from, to, _)| (from.table, to.table)).collect();
            if tables.iter().all(|(from, to)| from > to) {
                for (from, to, _) in &edges {
                    prop_assert!(waves.row(*to) < waves.row(*from));
                }
            }
        }
    }
}
