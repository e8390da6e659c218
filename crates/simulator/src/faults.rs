//! Choosing faults: a function of the plan and the number of the request.

use std::collections::BTreeMap;

use crate::answer::{Answer, Refusal};
use crate::config::{FaultKind, Faults};
use crate::dice::mix;
use crate::read::PageFault;

/// The plan and how far it has got.
#[derive(Debug, Default)]
pub(crate) struct FaultState {
    plan: Faults,
    requests: u64,
    by_table: BTreeMap<String, u64>,
    writes: BTreeMap<String, u64>,
    by_chance: u64,
}

impl FaultState {
    pub(crate) fn new(plan: Faults) -> Self {
        Self { plan, ..Self::default() }
    }

    /// Numbers a request and says what goes wrong with it. `read` names the table of requests for rows or changes,
    /// `write` that of writes.
    pub(crate) fn choose(&mut self, read: Option<&str>, write: Option<&str>) -> (u64, Option<FaultKind>) {
        self.requests += 1;
        let number = self.requests;
        let plans = [(read, &mut self.by_table, &self.plan.on), (write, &mut self.writes, &self.plan.on_write)];
        for (table, counts, plan) in plans {
            let Some(table) = table else { continue };
            let nth = counts.entry(table.to_owned()).or_default();
            *nth += 1;
            if let Some(fault) = plan.iter().find(|fault| fault.table == table && fault.nth == *nth) {
                return (number, Some(fault.kind));
            }
        }
        if let Some((_, kind)) = self.plan.at.iter().find(|(at, _)| *at == number) {
            return (number, Some(*kind));
        }
        if self.plan.most.is_some_and(|most| self.by_chance >= most) {
            return (number, None);
        }
        for (index, kind) in (0_u64..).zip(FaultKind::ALL.into_iter().chain(FaultKind::WRITING)) {
            let chance = self.plan.per_mille.get(&kind).copied().unwrap_or(0);
            if mix(mix(self.plan.seed ^ number) ^ index) % 1_000 < u64::from(chance) {
                self.by_chance += 1;
                return (number, Some(kind));
            }
        }
        (number, None)
    }
}

impl FaultKind {
    /// The part of the fault that the page itself must play.
    pub(crate) fn page(self) -> Option<PageFault> {
        match self {
            Self::RepeatedLink => Some(PageFault::RepeatedLink),
            Self::EmptyPage => Some(PageFault::EmptyPage),
            Self::LostDeltaLink => Some(PageFault::LostDeltaLink),
            Self::RepeatedRow => Some(PageFault::RepeatedRow),
            _ => None,
        }
    }

    /// An answer given instead of the real one.
    pub(crate) fn instead(self) -> Option<Answer> {
        let html = |status: u16, text: &str| Answer {
            status,
            media_type: "text/html",
            ..Answer::text(format!(
                "<html><head><title>{text}</title></head><body><center><h1>{text}</h1></center></body></html>"
            ))
        };
        match self {
            Self::ServerError => Some(Refusal::new(500, "0x80040216", "An unexpected error occurred.").into_answer()),
            Self::BadGateway => Some(html(502, "502 Bad Gateway")),
            Self::Unavailable => Some(Answer::empty(503)),
            Self::GatewayTimeout => Some(Answer::empty(504)),
            Self::HtmlSuccess => Some(html(200, "We are sorry, something went wrong")),
            Self::Throttled | Self::ThrottledSilently => {
                let answer = Refusal::new(
                    429,
                    "0x80072322",
                    "Number of requests exceeded the limit of 6000 over time window of 300 seconds.",
                )
                .into_answer();
                Some(if self == Self::Throttled { answer.with("Retry-After", "1") } else { answer })
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::FaultState;
    use crate::config::{FaultKind, Faults, TableFault};

    #[test]
    fn the_plan_decides_by_number_table_and_seed() {
        let plan = Faults {
            seed: 9,
            per_mille: [(FaultKind::CutBody, 200)].into(),
            at: vec![(2, FaultKind::Unavailable)],
            on: vec![TableFault { table: "account".to_owned(), nth: 2, kind: FaultKind::EmptyPage }],
            most: Some(3),
            ..Faults::default()
        };
        let run = || {
            let mut state = FaultState::new(plan.clone());
            (0..200).map(|number| state.choose((number % 3 == 0).then_some("account"), None).1).collect::<Vec<_>>()
        };
        let faults = run();
        assert_eq!(faults, run());
        assert_eq!(faults[1], Some(FaultKind::Unavailable));
        assert_eq!(faults[3], Some(FaultKind::EmptyPage));
        assert_eq!(faults.iter().filter(|fault| **fault == Some(FaultKind::CutBody)).count(), 3);
    }
}
