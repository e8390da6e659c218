//! Five-field schedules: whether they can be understood.

/// Fields in order: name, smallest and largest number, and the words that stand for numbers from the smallest on.
const FIELDS: [(&str, u8, u8, &[&str]); 5] = [
    ("minute", 0, 59, &[]),
    ("hour", 0, 23, &[]),
    ("day", 1, 31, &[]),
    ("month", 1, 12, &["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]),
    ("weekday", 0, 7, &["sun", "mon", "tue", "wed", "thu", "fri", "sat"]),
];

/// What is wrong with a schedule, if anything.
pub(super) fn fault(schedule: &str) -> Option<String> {
    let texts: Vec<&str> = schedule.split_whitespace().collect();
    if texts.len() != FIELDS.len() {
        return Some("it does not have five fields".into());
    }
    let wrong = texts.iter().zip(FIELDS).find(|(text, (_, min, max, words))| {
        !text.split(',').all(|part| is_part(&part.to_ascii_lowercase(), *min, *max, words))
    });
    wrong.map(|(text, (name, min, max, _))| format!("{text:?} is no {name}, which is from {min} to {max}"))
}

/// `*`, `3`, `1-5`, each with or without `/2`.
fn is_part(part: &str, min: u8, max: u8, words: &[&str]) -> bool {
    let number = |text: &str| {
        let word = words.iter().position(|word| *word == text).map(|index| min + index as u8);
        word.or_else(|| text.parse().ok().filter(|number| (min..=max).contains(number)))
    };
    let (range, step) = part.split_once('/').map_or((part, None), |(range, step)| (range, Some(step)));
    let steps = step.is_none_or(|step| step.parse::<u8>().is_ok_and(|step| step > 0));
    let ranges = match range.split_once('-') {
        Some((from, to)) => matches!((number(from), number(to)), (Some(from), Some(to)) if from <= to),
        None => range == "*" || number(range).is_some(),
    };
    steps && ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedules_of_five_fields_are_told_from_others() {
        for good in ["0 * * * *", "*/15 8-18 * * mon-fri", "0 3 1,15 JAN *", "5 4 * * 7", "0 0-23/2 * * sun"] {
            assert_eq!(fault(good), None, "{good}");
        }
        for bad in ["", "* * * *", "* * * * * *", "60 * * * *", "0 24 * * *", "0 0 0 * *", "0 0 * 13 *", "0 0 * * 8"]
            .into_iter()
            .chain(["*/0 * * * *", "5-1 * * * *", "a * * * *", "1,,2 * * * *", "@daily", "-1 * * * *", "0 0 * mon *"])
        {
            assert!(fault(bad).is_some(), "{bad}");
        }
        assert_eq!(fault("99 * * * *").unwrap(), "\"99\" is no minute, which is from 0 to 59");
    }
}
