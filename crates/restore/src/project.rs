//! Fitting captured values to what the target takes, before anything is sent: what does not fit is left out and reported,
//! never cut short in silence (`dataverse` protocol, section 12, T83 and T84).

use dynavault_model::{ColumnKind, ColumnRule};

use crate::compare::{NULL, integer, text};

/// Why a value is not written. The words are codes of the restore guide.
pub(crate) mod reason {
    /// The target has no such column.
    pub(crate) const MISSING_COLUMN: &str = "missing-column";
    /// The target does not let it be written.
    pub(crate) const READ_ONLY: &str = "read-only";
    /// The text is longer than the column.
    pub(crate) const TOO_LONG: &str = "too-long";
    /// The choice no longer has the value.
    pub(crate) const CHOICE_GONE: &str = "choice-gone";
    /// The value is of another kind than the column.
    pub(crate) const OTHER_KIND: &str = "other-kind";
    /// The column does not take rows of the table it points to.
    pub(crate) const WRONG_TARGET: &str = "wrong-target";
    /// Nothing says which table it points to.
    pub(crate) const NO_TARGET: &str = "no-target";
    /// The row it points to is neither there nor made.
    pub(crate) const MISSING_TARGET: &str = "missing-target";
    /// The user, team, unit, currency, role or queue it points to has no counterpart.
    pub(crate) const UNMAPPED: &str = "unmapped";
    /// A required column cannot be emptied.
    pub(crate) const REQUIRED: &str = "required";
}

/// What a value is written for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Use {
    /// A row that is made.
    Create,
    /// A row that is there.
    Update,
}

/// Why a column is not written at all; none when it is.
pub(crate) fn closed(rule: Option<&ColumnRule>, usage: Use) -> Option<&'static str> {
    let Some(rule) = rule else { return Some(reason::MISSING_COLUMN) };
    let open = match usage {
        Use::Create => rule.create,
        Use::Update => rule.update,
    };
    if open { None } else { Some(rule.not_written.unwrap_or(reason::READ_ONLY)) }
}

/// A value that does not fit: reason code, and a sentence that does not hold the value.
pub(crate) type Misfit = (&'static str, String);

/// Checks a value against the column's rule. Lookups are checked elsewhere, by the rows they point to.
pub(crate) fn fits(rule: &ColumnRule, value: &[u8]) -> Result<(), Misfit> {
    if value == NULL {
        return if rule.required {
            Err((reason::REQUIRED, "the column is required and the snapshot has no value".into()))
        } else {
            Ok(())
        };
    }
    match &rule.kind {
        ColumnKind::Text(Some(most)) => {
            let Some(text) = text(value) else { return Err(other_kind("a text")) };
            // The service counts as its own language does: in UTF-16 units.
            let units = text.encode_utf16().count() as u64;
            if units > *most {
                let sentence = format!("the text has {units} characters, the column takes {most}");
                return Err((reason::TOO_LONG, sentence));
            }
            Ok(())
        }
        ColumnKind::Choice { values, multi: false } if !values.is_empty() => match integer(value) {
            Some(number) => one_of(values, number),
            // Two-option choices come as booleans.
            None if matches!(value, b"true" | b"false") => Ok(()),
            None => Err(other_kind("a choice")),
        },
        ColumnKind::Choice { values, multi: true } if !values.is_empty() => {
            let Some(list) = text(value) else { return Err(other_kind("a list of choices")) };
            list.split(',').try_for_each(|item| match item.trim().parse() {
                Ok(number) => one_of(values, number),
                Err(_) => Err(other_kind("a list of choices")),
            })
        }
        _ => Ok(()),
    }
}

fn one_of(values: &[i64], number: i64) -> Result<(), Misfit> {
    if values.contains(&number) {
        return Ok(());
    }
    Err((reason::CHOICE_GONE, format!("the column no longer has the choice {number}")))
}

fn other_kind(wanted: &str) -> Misfit {
    (reason::OTHER_KIND, format!("the column takes {wanted}, the snapshot has something else"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(kind: ColumnKind) -> ColumnRule {
        ColumnRule {
            member: "a".into(),
            column: "a".into(),
            kind,
            create: true,
            update: false,
            required: false,
            not_written: None,
        }
    }

    fn code(rule: &ColumnRule, value: &str) -> &'static str {
        fits(rule, value.as_bytes()).map_or_else(|(code, _)| code, |()| "fits")
    }

    #[test]
    fn texts_are_measured_in_utf16_units() {
        let text = rule(ColumnKind::Text(Some(4)));
        assert_eq!(code(&text, r#""abcd""#), "fits");
        assert_eq!(code(&text, r#""\u00e4\u00e4ää""#), "fits");
        assert_eq!(code(&text, r#""ab😀""#), "fits");
        assert_eq!(code(&text, r#""abc😀""#), "too-long");
        assert_eq!(code(&text, r#""\"\"\"\"""#), "fits");
        assert_eq!(code(&text, "5"), "other-kind");
        assert_eq!(code(&rule(ColumnKind::Text(None)), r#""abcdefgh""#), "fits");
        assert_eq!(code(&text, "null"), "fits");
        assert!(!fits(&text, br#""secret value""#).unwrap_err().1.contains("secret"));
    }

    #[test]
    fn choices_that_are_gone_are_found() {
        let choice = rule(ColumnKind::Choice { values: vec![1, 2, 100_000_000], multi: false });
        assert_eq!(code(&choice, "100000000"), "fits");
        assert_eq!(code(&choice, "3"), "choice-gone");
        assert_eq!(code(&choice, "true"), "fits");
        assert_eq!(code(&choice, "\"1\""), "other-kind");
        let multi = rule(ColumnKind::Choice { values: vec![1, 2], multi: true });
        assert_eq!(code(&multi, "\"1,2\""), "fits");
        assert_eq!(code(&multi, "\"2, 3\""), "choice-gone");
        assert_eq!(code(&rule(ColumnKind::Choice { values: vec![], multi: false }), "3"), "fits");
    }

    #[test]
    fn closed_columns_say_why() {
        let mut column = rule(ColumnKind::Value);
        assert_eq!(closed(Some(&column), Use::Create), None);
        assert_eq!(closed(Some(&column), Use::Update), Some("read-only"));
        column.create = false;
        column.not_written = Some("calculated");
        assert_eq!(closed(Some(&column), Use::Create), Some("calculated"));
        assert_eq!(closed(None, Use::Update), Some("missing-column"));
        column.required = true;
        assert_eq!(fits(&column, NULL).unwrap_err().0, "required");
    }
}
