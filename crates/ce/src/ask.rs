//! How rows are asked for by their keys. The short form is a query function that not every service knows; which form is taken is
//! found out by asking, once for an environment.

use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering};

use dynavault_model::RowKey;
use dynavault_odata::RequestError;

use crate::wire::id;

/// Longest address, which leaves room for what the service adds (`dataverse`, section 1.1: 32,768).
const ADDRESS_CHARS_MAX: usize = 30_000;
/// A quote or a space in an address.
const ENCODED_CHARS: usize = "%27".len();
const ID_CHARS: usize = 36;

/// A form of asking for rows by their keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// `In` over ids, a query function.
    In,
    /// One comparison for each id.
    AnyOf,
    /// One request for each row, by its address.
    OneByOne,
}

/// The forms, the cheapest one first.
pub(crate) const FORMS: [Form; 3] = [Form::In, Form::AnyOf, Form::OneByOne];

/// The form that a service takes, as far as it is known.
#[derive(Debug, Default)]
pub(crate) struct Taken(AtomicUsize);

impl Taken {
    /// Forms that are worth a try.
    pub(crate) fn forms(&self) -> &'static [Form] {
        &FORMS[self.0.load(Ordering::Relaxed).min(FORMS.len() - 1)..]
    }

    /// A form was answered.
    pub(crate) fn note(&self, form: Form) {
        let place = FORMS.iter().position(|one| *one == form).unwrap_or_default();
        self.0.store(place, Ordering::Relaxed);
    }
}

/// Whether a refusal may be about the form of the question. That a set is missing, or may not be read, is not.
pub(crate) fn is_about_form(error: &RequestError) -> bool {
    error.status().is_some_and(|status| matches!(status, 400 | 405 | 414 | 500 | 501))
}

impl Form {
    /// Most keys in a question.
    pub(crate) fn keys_max(self) -> usize {
        match self {
            Self::In => 250,
            // Services limit the length of a condition more than that of an address.
            Self::AnyOf => 50,
            Self::OneByOne => 1,
        }
    }

    /// Characters of an address that a key takes.
    fn key_chars(self, member: &str) -> usize {
        match self {
            Self::In | Self::OneByOne => ID_CHARS + 2 * ENCODED_CHARS + 3,
            Self::AnyOf => member.len() + ID_CHARS + 4 * ENCODED_CHARS + 4,
        }
    }

    /// The condition that rows with these ids meet.
    pub(crate) fn filter(self, member: &str, ids: &[&str]) -> String {
        if self == Self::AnyOf {
            let each: Vec<String> = ids.iter().map(|id| format!("{member} eq {id}")).collect();
            return format!("$filter={}", each.join(" or "));
        }
        let ids: Vec<String> = ids.iter().map(|id| format!("'{id}'")).collect();
        format!("$filter=Microsoft.Dynamics.CRM.In(PropertyName='{member}',PropertyValues=[{}])", ids.join(","))
    }

    /// Addresses that together ask for `keys`, each of a length the service takes; `first` names set and columns. Ids that are none
    /// are left out: no row can have them.
    pub(crate) fn addresses(self, first: &str, member: &str, keys: &[&RowKey]) -> Vec<String> {
        let joint = if first.contains('?') { '&' } else { '?' };
        let room = ADDRESS_CHARS_MAX.saturating_sub(first.len() + member.len() + 200) / self.key_chars(member);
        // Two links may share an end, and so may two rows of different partitions share an id.
        let mut seen = HashSet::new();
        let ids: Vec<&str> = keys.iter().filter_map(|key| id(&key.id).ok()).filter(|id| seen.insert(*id)).collect();
        let blocks = ids.chunks(room.clamp(1, self.keys_max()));
        blocks.map(|ids| format!("{first}{joint}{}", self.filter(member, ids))).collect()
    }
}
