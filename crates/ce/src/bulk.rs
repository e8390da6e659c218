//! Taking a refused bulk message apart, so that one bad row does not keep its neighbours from being written (`dataverse`,
//! section 6.12: a standard table writes all rows of a message or none, and names no row in its refusal).
//!
//! ```text
//!            ┌ done ──────────────────────────▶ Done, all of them
//!  rows ─────┼ refused, one row ──────────────▶ Refused, with the row's own words
//!    ▲       ├ refused, many ─▶ two halves ──┐
//!    └───────┼───────────────────────────────┘  after BAD_ROWS_MAX single refusals: OneByOne, all the rest
//!            └ answer lost ───────────────────▶ Unknown, the rest NotSent
//! ```
//!
//! One bad row among n costs about 2·log2(n) requests more. An owner who cannot own is a matter of many rows: those go one by one
//! right away, so that all of that owner are found in one request.

use std::future::Future;
use std::ops::Range;

use dynavault_odata::RefusalClass;

use crate::verdicts::{Refused, is_of_every_row};

/// Rows refused one by one before the rest of a message is better sent as a batch, whose parts fail each on their own.
const BAD_ROWS_MAX: usize = 8;

/// What the service said to one message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Answer {
    Done,
    /// None of the rows was written.
    Refused(Refused),
    /// All rows were written but these, by place within the message.
    Partly(Vec<(usize, Refused)>),
    /// Nobody knows what became of the rows.
    Lost(String),
}

/// What became of one row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Fate {
    Done,
    Refused(Refused),
    Unknown(String),
    NotSent,
    /// Not sent; to be sent in a form in which rows fail each on their own.
    OneByOne,
}

/// Sends `count` rows through `send`, which takes places and sends those rows as one message. An error of `send` ends it, and is
/// given along with what became of the rows until then.
pub(crate) async fn divide<F, E>(count: usize, mut send: impl FnMut(Range<usize>) -> F) -> (Vec<Fate>, Option<E>)
where
    F: Future<Output = Result<Answer, E>>,
{
    let mut fates = vec![Fate::NotSent; count];
    let mut bad = 0;
    let mut shared = false;
    // Ranges that are still to be sent, the next one last.
    let mut waiting = Vec::from([Range { start: 0, end: count }]);
    while let Some(range) = waiting.pop().filter(|range| !range.is_empty()) {
        if bad >= BAD_ROWS_MAX || shared {
            for rest in waiting.into_iter().chain([range]) {
                fates[rest].fill(Fate::OneByOne);
            }
            break;
        }
        match send(range.clone()).await {
            Ok(Answer::Done) => fates[range].fill(Fate::Done),
            Ok(Answer::Partly(refused)) => {
                fates[range.clone()].fill(Fate::Done);
                for (place, refused) in refused {
                    if let Some(fate) = fates[range.clone()].get_mut(place) {
                        *fate = Fate::Refused(refused);
                    }
                }
            }
            Ok(Answer::Refused(refused)) if range.len() > 1 && refused.class == RefusalClass::Owner => {
                shared = true;
                waiting.push(range);
            }
            Ok(Answer::Refused(refused)) if range.len() > 1 && !is_of_every_row(&refused) => {
                let middle = range.start + range.len() / 2;
                waiting.push(middle..range.end);
                waiting.push(range.start..middle);
            }
            Ok(Answer::Refused(refused)) => {
                bad += 1;
                fates[range].fill(Fate::Refused(refused));
            }
            // The connection is not to be trusted now; the rest waits for whoever decides about these.
            Ok(Answer::Lost(message)) => {
                fates[range].fill(Fate::Unknown(message));
                break;
            }
            Err(error) => return (fates, Some(error)),
        }
    }
    (fates, None)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::convert::Infallible;

    use super::*;

    fn refused(class: RefusalClass) -> Refused {
        Refused { status: 400, code: Some(1), printed_code: "0x1".into(), message: "no".into(), class }
    }

    /// Refuses every message with a bad row in it; the fates and the number of requests.
    async fn run(count: usize, bad: &[usize], class: RefusalClass) -> (Vec<Fate>, usize) {
        let bad: BTreeSet<usize> = bad.iter().copied().collect();
        let mut requests = 0;
        let mut written: BTreeSet<usize> = BTreeSet::new();
        let (fates, error) = divide(count, |range| {
            requests += 1;
            let answer = if bad.range(range.clone()).next().is_some() {
                Answer::Refused(refused(class))
            } else {
                assert!(range.clone().all(|place| written.insert(place)), "a row was written twice");
                Answer::Done
            };
            std::future::ready(Ok::<_, Infallible>(answer))
        })
        .await;
        assert!(error.is_none());
        for (place, fate) in fates.iter().enumerate() {
            assert_eq!(*fate == Fate::Done, written.contains(&place), "{place}");
        }
        (fates, requests)
    }

    #[tokio::test]
    async fn one_bad_row_is_found_and_its_neighbours_are_written() {
        for bad in [0, 1, 249, 250, 499] {
            let (fates, requests) = run(500, &[bad], RefusalClass::Row).await;
            assert_eq!(fates.iter().filter(|fate| **fate == Fate::Done).count(), 499);
            assert_eq!(fates[bad], Fate::Refused(refused(RefusalClass::Row)));
            assert!(requests <= 1 + 20, "{requests}");
        }
        assert_eq!(run(500, &[], RefusalClass::Row).await.1, 1);
        assert_eq!(run(0, &[], RefusalClass::Row).await.1, 0);
    }

    #[tokio::test]
    async fn many_bad_rows_end_the_halving() {
        let bad: Vec<usize> = (0..500).step_by(2).collect();
        let (fates, requests) = run(500, &bad, RefusalClass::Row).await;
        assert_eq!(fates.iter().filter(|fate| matches!(fate, Fate::Refused(_))).count(), BAD_ROWS_MAX);
        assert!(requests < 40, "{requests}");
        let rest = fates.iter().filter(|fate| **fate == Fate::OneByOne).count();
        assert!(rest > 450 && fates.iter().all(|fate| *fate != Fate::NotSent), "{rest}");
    }

    #[tokio::test]
    async fn rows_of_an_owner_who_cannot_own_are_found_in_one_request() {
        let (fates, requests) = run(500, &[3, 4, 250], RefusalClass::Owner).await;
        assert_eq!(requests, 1);
        assert!(fates.iter().all(|fate| *fate == Fate::OneByOne));
    }

    #[tokio::test]
    async fn a_refusal_of_the_table_is_not_taken_apart() {
        let (fates, requests) = run(500, &[3], RefusalClass::Table).await;
        assert_eq!(requests, 1);
        assert!(fates.iter().all(|fate| *fate == Fate::Refused(refused(RefusalClass::Table))));
    }

    #[tokio::test]
    async fn a_lost_answer_leaves_its_own_rows_unknown_and_the_rest_unsent() {
        let mut requests = 0;
        let (fates, _) = divide(8, |range| {
            requests += 1;
            let answer = match range.len() {
                8 => Answer::Refused(refused(RefusalClass::Row)),
                _ if range.start == 0 => Answer::Done,
                _ => Answer::Lost("cut".into()),
            };
            std::future::ready(Ok::<_, Infallible>(answer))
        })
        .await;
        assert_eq!(requests, 3);
        assert!(fates[..4].iter().all(|fate| *fate == Fate::Done));
        assert!(fates[4..].iter().all(|fate| *fate == Fate::Unknown("cut".into())));
        let (fates, _) = divide(8, |range| {
            let refuse = range.len() == 8;
            let answer = if refuse { Answer::Refused(refused(RefusalClass::Row)) } else { Answer::Lost("cut".into()) };
            std::future::ready(Ok::<_, Infallible>(answer))
        })
        .await;
        assert!(fates[..4].iter().all(|fate| *fate == Fate::Unknown("cut".into())));
        assert!(fates[4..].iter().all(|fate| *fate == Fate::NotSent));
    }

    #[tokio::test]
    async fn rows_of_elastic_tables_fail_by_their_place() {
        let (fates, error) = divide(3, |_| {
            std::future::ready(Ok::<_, Infallible>(Answer::Partly(vec![(1, refused(RefusalClass::Duplicate))])))
        })
        .await;
        assert!(error.is_none());
        assert_eq!(fates, [Fate::Done, Fate::Refused(refused(RefusalClass::Duplicate)), Fate::Done]);
    }

    #[tokio::test]
    async fn what_was_written_before_an_error_is_known() {
        let (fates, error) = divide(4, |range| {
            let answer = match range.start {
                0 if range.len() == 4 => Ok(Answer::Refused(refused(RefusalClass::Row))),
                0 => Ok(Answer::Done),
                _ => Err("stopped"),
            };
            std::future::ready(answer)
        })
        .await;
        assert_eq!(error, Some("stopped"));
        assert_eq!(fates, [Fate::Done, Fate::Done, Fate::NotSent, Fate::NotSent]);
    }
}
