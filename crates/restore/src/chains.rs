//! Rows that cannot be made because a row they need cannot be: found from row to row, each with the chain that ends at the
//! first cause (`dataverse` protocol, rule 6.2: only a required lookup takes its row along, and nothing else).

use std::collections::HashMap;

use crate::live::Packed;
use crate::resolve::{Presence, presence, words};
use crate::waves::{Node, Waves};
use crate::work::Work;

/// Links of a chain that are spelled out.
const CHAIN_MAX: usize = 8;

impl Work {
    /// Computes the waves, after taking out every row that cannot be made.
    pub(crate) fn order(&mut self) -> Waves {
        let mut why: HashMap<Node, Node> = HashMap::new();
        let required = std::mem::take(&mut self.required);
        let missing = |work: &Self, node: Node| presence(&work.tables, &work.outside, node) == Presence::Missing;
        let first: Vec<(Node, Node)> = required.iter().copied().filter(|(_, to)| missing(self, *to)).collect();
        self.take_out(first, &required, &mut why);
        let waves = Waves::new(self.tables.with_rows(), &self.edges);
        let circles = waves.circles.clone();
        for node in &circles {
            if self.is_made(*node) {
                self.unmake(*node);
                let sentence = "required lookups lead from the row back to itself, so that no row can be the first";
                self.report("required-circle", *node, sentence.into());
            }
        }
        let followers: Vec<(Node, Node)> = required.iter().copied().filter(|(_, to)| circles.contains(to)).collect();
        self.take_out(followers, &required, &mut why);
        waves
    }

    /// Takes out rows whose required row is missing, and those that need them in turn.
    fn take_out(&mut self, first: Vec<(Node, Node)>, required: &[(Node, Node)], why: &mut HashMap<Node, Node>) {
        let mut followers: HashMap<Node, Vec<Node>> = HashMap::new();
        if !first.is_empty() {
            for (from, to) in required {
                followers.entry(*to).or_default().push(*from);
            }
        }
        let mut open = first;
        while let Some((from, to)) = open.pop() {
            if !self.is_made(from) {
                continue;
            }
            self.unmake(from);
            why.insert(from, to);
            let mut chain = words(&self.tables, &self.outside, to);
            let mut at = to;
            for _ in 0..CHAIN_MAX {
                let Some(next) = why.get(&at) else { break };
                chain.push_str(", which needs ");
                chain.push_str(&words(&self.tables, &self.outside, *next));
                at = *next;
            }
            self.report("missing-required", from, format!("the row needs {chain}, which is neither there nor made"));
            open.extend(followers.get(&from).into_iter().flatten().map(|follower| (*follower, from)));
        }
    }

    fn is_made(&self, node: Node) -> bool {
        presence(&self.tables, &self.outside, node) == Presence::Planned
    }

    fn unmake(&mut self, node: Node) {
        let table = self.tables.get_mut(node.table);
        table.states[node.row as usize] = Packed::UNMADE;
        table.plan.counts.impossible += 1;
    }

    fn report(&mut self, code: &'static str, node: Node, sentence: String) {
        let table = self.tables.get(node.table);
        let id = table.ids[node.row as usize].to_string();
        self.findings.row(code, &table.name, &id, "", sentence);
    }
}
