//! What may be shown of URLs and foreign messages.
//!
//! A SAS is a key that lives in a URL, and HTTP libraries like to print URLs. So every URL that reaches a message loses
//! its query, its fragment and its user part, and foreign text is scrubbed before it is repeated.

use url::Url;

/// Longest piece of foreign text that is repeated in a message, in characters.
pub const FOREIGN_TEXT_CHARS_MAX: usize = 300;

/// Names whose value is replaced wherever `name=value` occurs (`entra` protocol, section 12.1).
const SECRET_NAMES: [&str; 13] = [
    "sig",
    "client_secret",
    "client_assertion",
    "refresh_token",
    "access_token",
    "id_token",
    "password",
    "claims",
    "code",
    "code_verifier",
    "device_code",
    "sharedaccesssignature",
    "accountkey",
];

/// The URL without query, fragment and user part.
pub fn url_for_message(url: &Url) -> String {
    let mut shown = url.clone();
    shown.set_query(None);
    shown.set_fragment(None);
    if !shown.username().is_empty() || shown.password().is_some() {
        // Both fail only for URLs that cannot have a user part, and those have none to hide.
        let _cannot_have_user = shown.set_username("");
        let _cannot_have_user = shown.set_password(None);
    }
    shown.to_string()
}

/// Foreign text fit for a message: one line, no control characters, URLs without their query, values of secret names
/// replaced, at most [`FOREIGN_TEXT_CHARS_MAX`] characters.
pub fn scrub(text: &str) -> String {
    let mut clean = String::new();
    // `name: value` is two words.
    let mut value_follows = false;
    for word in text.split(|c: char| c.is_whitespace() || c.is_control()).filter(|word| !word.is_empty()) {
        if !clean.is_empty() {
            clean.push(' ');
        }
        let shown = if value_follows { "[hidden]".to_owned() } else { scrub_word(word) };
        value_follows = !value_follows && shown != word && word.ends_with(['=', ':', '"']);
        clean.push_str(&shown);
        if clean.chars().count() > FOREIGN_TEXT_CHARS_MAX {
            break;
        }
    }
    match clean.char_indices().nth(FOREIGN_TEXT_CHARS_MAX) {
        Some((end, _)) => format!("{}…", &clean[..end]),
        None => clean,
    }
}

fn scrub_word(word: &str) -> String {
    let lower = word.to_ascii_lowercase();
    if let (Some(scheme), Some(query)) = (lower.find("://"), lower.find('?'))
        && scheme < query
    {
        return format!("{}?[hidden]", &word[..query]);
    }
    for name in SECRET_NAMES {
        let mut from = 0;
        while let Some(at) = lower[from..].find(name) {
            let start = from + at;
            let end = start + name.len();
            let own_word = start == 0 || !lower.as_bytes()[start - 1].is_ascii_alphanumeric();
            if own_word && lower[end..].starts_with(['=', ':', '"']) {
                return format!("{}=[hidden]", &word[..end]);
            }
            from = end;
        }
    }
    // A token is one long word; nothing an operator needs to read is.
    if word.len() > 100 { "[hidden]".to_owned() } else { word.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_never_survives_in_a_url() {
        let url = Url::parse("https://me:pw@acct.blob.core.windows.net/c/p?sv=2024&sig=abc%3D#f").unwrap();
        assert_eq!(url_for_message(&url), "https://acct.blob.core.windows.net/c/p");
    }

    #[test]
    fn foreign_text_is_one_clean_line() {
        let text = "error for (https://a.b/c?sv=1&sig=SECRET)\r\n  client_secret=SECRET {\"access_token\":\"SECRET\"} \"refresh_token\": \"SECRET\" id_token: SECRET sig=SECRET&x design=fine \u{1b}[31m";
        let shown = scrub(text);
        assert!(!shown.contains("SECRET"), "{shown}");
        assert!(shown.contains("design=fine") && shown.contains("https://a.b/c?[hidden]"), "{shown}");
        assert!(!shown.contains(char::is_control));
    }

    #[test]
    fn long_text_and_long_words_are_cut() {
        assert_eq!(scrub(&"x".repeat(5000)), "[hidden]");
        assert!(scrub(&"word ".repeat(5000)).chars().count() <= FOREIGN_TEXT_CHARS_MAX + 1);
    }
}
