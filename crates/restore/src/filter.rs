//! `--where`: a small language over the captured members of a row.
//!
//! ```text
//!  expression = expression "or" expression | expression "and" expression | "not" expression | "(" expression ")" | test
//!  test       = column ("=" | "!=" | "<" | "<=" | ">" | ">=") literal
//!             | column ["not"] "like" 'text with % for anything'
//!             | column ["not"] "in" "(" literal { "," literal } ")"
//!             | column "is" ["not"] "null"
//!  literal    = 'text' ('' for a quote inside) | number | true | false | id
//! ```
//!
//! A column is named by its logical name or by its member (`primarycontactid` or `_primarycontactid_value`). Numbers are
//! compared as decimals of any length, never through floats; text as text, case included, which for dates in the service's
//! form is their order in time; ids in any case. A value that is null or of another kind than the literal satisfies no
//! test but `is null`, and neither does its negation: `not (revenue > 5)` leaves out rows without a revenue, as in SQL.

use std::cmp::Ordering;

use dynavault_model::{Diagnose, FaultKind, Row, RowId, TableSchema};

/// Longest expression.
const EXPRESSION_BYTES_MAX: usize = 64 << 10;
/// Deepest nesting of parentheses and `not`.
const DEPTH_MAX: usize = 64;

/// An expression that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the condition is wrong at character {position}: {reason}")]
pub struct FilterError {
    /// Character of the expression, from 1.
    pub position: usize,
    /// What was expected or is unknown.
    pub reason: String,
}

impl Diagnose for FilterError {
    fn remedy(&self) -> Option<String> {
        Some("write for example --where \"name like 'A%' and (revenue >= 1000.50 or statecode in (0, 1))\"".into())
    }

    fn kind(&self) -> FaultKind {
        FaultKind::Usage
    }
}

/// A parsed expression, not yet of a table.
#[derive(Debug, Clone)]
pub struct Filter {
    root: Node,
}

/// An expression over the members of one table.
#[derive(Debug, Clone)]
pub struct BoundFilter {
    root: Node,
}

#[derive(Debug, Clone)]
enum Node {
    Or(Vec<Node>),
    And(Vec<Node>),
    Not(Box<Node>),
    Test { column: String, position: usize, test: Test },
}

#[derive(Debug, Clone)]
enum Test {
    Compare(Comparison, Literal),
    In(Vec<Literal>),
    Like(Vec<String>),
    Null,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Comparison {
    Equal,
    Unequal,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

#[derive(Debug, Clone)]
enum Literal {
    Text(String),
    Number(String),
    Boolean(bool),
}

#[derive(Debug, Clone, PartialEq)]
enum Token {
    Word(String),
    Text(String),
    Number(String),
    Sign(&'static str),
    End,
}

impl Filter {
    /// Reads an expression.
    pub fn parse(text: &str) -> Result<Self, FilterError> {
        if text.len() > EXPRESSION_BYTES_MAX {
            return Err(FilterError { position: 1, reason: format!("it is longer than {EXPRESSION_BYTES_MAX} bytes") });
        }
        let mut parser = Parser { tokens: tokens(text)?, at: 0, depth: 0 };
        let root = parser.or()?;
        match parser.peek() {
            Token::End => Ok(Self { root }),
            _ => Err(parser.unexpected("`and`, `or` or the end")),
        }
    }

    /// The expression for a table, with its columns found.
    pub fn bind(&self, schema: &TableSchema) -> Result<BoundFilter, FilterError> {
        let mut root = self.root.clone();
        bind(&mut root, schema)?;
        Ok(BoundFilter { root })
    }
}

/// Member of a column that is named by its logical name or its member.
pub(crate) fn member_of<'a>(schema: &'a TableSchema, name: &str) -> Option<&'a str> {
    let by = |exact: &dyn Fn(&dynavault_model::Column) -> bool| schema.columns.iter().find(|column| exact(column));
    by(&|column| column.member == name)
        .or_else(|| by(&|column| column.name == name))
        .map(|column| column.member.as_str())
        .or_else(|| schema.key.iter().find(|member| *member == name).map(String::as_str))
}

fn bind(node: &mut Node, schema: &TableSchema) -> Result<(), FilterError> {
    match node {
        Node::Or(nodes) | Node::And(nodes) => nodes.iter_mut().try_for_each(|node| bind(node, schema)),
        Node::Not(node) => bind(node, schema),
        Node::Test { column, position, .. } => match member_of(schema, column) {
            Some(member) => {
                *column = member.to_string();
                Ok(())
            }
            None => Err(FilterError {
                position: *position,
                reason: format!("table {} has no captured column {column}", schema.table),
            }),
        },
    }
}

impl BoundFilter {
    /// Whether a row satisfies the expression.
    pub fn matches(&self, row: &Row<'_>) -> bool {
        evaluate(&self.root, row) == Some(true)
    }
}

/// True, false, or unknown because a value is missing.
fn evaluate(node: &Node, row: &Row<'_>) -> Option<bool> {
    match node {
        Node::Or(nodes) => {
            let mut unknown = false;
            for node in nodes {
                match evaluate(node, row) {
                    Some(true) => return Some(true),
                    Some(false) => {}
                    None => unknown = true,
                }
            }
            if unknown { None } else { Some(false) }
        }
        Node::And(nodes) => {
            let mut unknown = false;
            for node in nodes {
                match evaluate(node, row) {
                    Some(false) => return Some(false),
                    Some(true) => {}
                    None => unknown = true,
                }
            }
            if unknown { None } else { Some(true) }
        }
        Node::Not(node) => evaluate(node, row).map(|value| !value),
        Node::Test { column, test, .. } => {
            let value = row.get(column).filter(|value| *value != b"null");
            match test {
                Test::Null => Some(value.is_none()),
                Test::Compare(comparison, literal) => compare(value?, literal).map(|order| comparison.holds(order)),
                Test::In(literals) => {
                    let value = value?;
                    let orders: Vec<_> = literals.iter().map(|literal| compare(value, literal)).collect();
                    if orders.contains(&Some(Ordering::Equal)) {
                        return Some(true);
                    }
                    orders.iter().any(Option::is_some).then_some(false)
                }
                Test::Like(parts) => text_of(value?).map(|text| like(&text, parts)),
            }
        }
    }
}

impl Comparison {
    fn holds(self, order: Ordering) -> bool {
        match self {
            Self::Equal => order.is_eq(),
            Self::Unequal => order.is_ne(),
            Self::Less => order.is_lt(),
            Self::LessOrEqual => order.is_le(),
            Self::Greater => order.is_gt(),
            Self::GreaterOrEqual => order.is_ge(),
        }
    }
}

fn text_of(value: &[u8]) -> Option<String> {
    if value.first() == Some(&b'"') { serde_json::from_slice(value).ok() } else { None }
}

/// Order of a captured value and a literal; none when they are of different kinds.
fn compare(value: &[u8], literal: &Literal) -> Option<Ordering> {
    match literal {
        Literal::Boolean(wanted) => match value {
            b"true" => Some(true.cmp(wanted)),
            b"false" => Some(false.cmp(wanted)),
            _ => None,
        },
        // A service asked for it sends decimals as text (`dataverse` protocol, section 3.5).
        Literal::Number(wanted) => match text_of(value) {
            Some(text) => compare_decimals(&text, wanted),
            None => compare_decimals(std::str::from_utf8(value).ok()?, wanted),
        },
        Literal::Text(wanted) => {
            let text = text_of(value)?;
            match (RowId::from_guid(text.as_bytes()), RowId::from_guid(wanted.as_bytes())) {
                (Some(a), Some(b)) => Some(a.cmp(&b)),
                _ => Some(text.as_str().cmp(wanted)),
            }
        }
    }
}

fn like(text: &str, parts: &[String]) -> bool {
    let [first, middle @ .., last] = parts else { return parts.first().is_some_and(|only| text == only) };
    let Some(rest) = text.strip_prefix(first.as_str()) else { return false };
    let Some(mut rest) = rest.strip_suffix(last.as_str()) else { return false };
    for part in middle {
        let Some(at) = rest.find(part.as_str()) else { return false };
        rest = &rest[at + part.len()..];
    }
    true
}

/// A decimal as sign, digits and the power of ten of its first digit.
struct Decimal {
    negative: bool,
    digits: Vec<u8>,
    power: i64,
}

impl Decimal {
    fn parse(text: &str) -> Option<Self> {
        let (negative, rest) = match text.strip_prefix('-') {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        let (mantissa, exponent) = match rest.find(['e', 'E']) {
            Some(at) => (&rest[..at], rest[at + 1..].parse::<i64>().ok()?),
            None => (rest, 0),
        };
        let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        let all = whole.bytes().chain(fraction.bytes());
        if whole.is_empty() || !all.clone().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        let zeros = all.clone().take_while(|byte| *byte == b'0').count();
        let mut digits: Vec<u8> = all.skip(zeros).collect();
        while digits.last() == Some(&b'0') {
            digits.pop();
        }
        let power = exponent.saturating_add(whole.len() as i64).saturating_sub(zeros as i64);
        let zero = digits.is_empty();
        Some(Self { negative: negative && !zero, power: if zero { i64::MIN } else { power }, digits })
    }
}

/// Order of two decimals as written, exactly; none if either is not a number.
pub(crate) fn compare_decimals(a: &str, b: &str) -> Option<Ordering> {
    let (a, b) = (Decimal::parse(a)?, Decimal::parse(b)?);
    Some(match (a.negative, b.negative) {
        (false, true) => Ordering::Greater,
        (true, false) => Ordering::Less,
        (negative, _) => {
            let order = a.power.cmp(&b.power).then_with(|| a.digits.cmp(&b.digits));
            if negative { order.reverse() } else { order }
        }
    })
}

fn tokens(text: &str) -> Result<Vec<(Token, usize)>, FilterError> {
    let characters: Vec<char> = text.chars().collect();
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(&character) = characters.get(at) {
        let position = at + 1;
        let next = characters.get(at + 1);
        let two = |sign| (Token::Sign(sign), 2);
        let one = |sign| (Token::Sign(sign), 1);
        let (token, length) = match character {
            ' ' | '\t' | '\n' | '\r' => {
                at += 1;
                continue;
            }
            '(' => one("("),
            ')' => one(")"),
            ',' => one(","),
            '=' => one("="),
            '!' if next == Some(&'=') => two("!="),
            '<' if next == Some(&'=') => two("<="),
            '<' if next == Some(&'>') => two("!="),
            '<' => one("<"),
            '>' if next == Some(&'=') => two(">="),
            '>' => one(">"),
            '\'' => quoted(&characters, at)?,
            _ if character.is_alphanumeric() || matches!(character, '_' | '-' | '.' | '{') => {
                bare(&characters, at).map_err(|reason| FilterError { position, reason })?
            }
            other => return Err(FilterError { position, reason: format!("`{other}` has no meaning here") }),
        };
        found.push((token, position));
        at += length;
    }
    found.push((Token::End, characters.len() + 1));
    Ok(found)
}

fn quoted(characters: &[char], start: usize) -> Result<(Token, usize), FilterError> {
    let mut text = String::new();
    let mut at = start + 1;
    loop {
        match (characters.get(at), characters.get(at + 1)) {
            (Some('\''), Some('\'')) => {
                text.push('\'');
                at += 2;
            }
            (Some('\''), _) => return Ok((Token::Text(text), at + 1 - start)),
            (Some(character), _) => {
                text.push(*character);
                at += 1;
            }
            (None, _) => return Err(FilterError { position: start + 1, reason: "the text has no end quote".into() }),
        }
    }
}

/// A word, a number or an id.
fn bare(characters: &[char], start: usize) -> Result<(Token, usize), String> {
    let text: String = characters[start..]
        .iter()
        .take_while(|c| c.is_alphanumeric() || matches!(c, '_' | '-' | '.' | '{' | '}' | '+'))
        .collect();
    let length = text.chars().count();
    if RowId::from_guid(text.as_bytes()).is_some() {
        return Ok((Token::Text(text), length));
    }
    if text.starts_with(|c: char| c.is_ascii_digit() || c == '-' || c == '.') {
        return match Decimal::parse(&text) {
            Some(_) => Ok((Token::Number(text), length)),
            None => Err(format!("`{text}` is neither a number nor an id; text stands in single quotes")),
        };
    }
    let word = text.chars().all(|c| c.is_alphanumeric() || c == '_');
    if word { Ok((Token::Word(text), length)) } else { Err(format!("`{text}` is not a column name")) }
}

struct Parser {
    tokens: Vec<(Token, usize)>,
    at: usize,
    depth: usize,
}

impl Parser {
    fn peek(&self) -> &Token {
        &self.tokens[self.at].0
    }

    fn position(&self) -> usize {
        self.tokens[self.at].1
    }

    fn next(&mut self) -> Token {
        let token = self.tokens[self.at].0.clone();
        // The end stays: whoever asks again is told the same.
        self.at = (self.at + 1).min(self.tokens.len() - 1);
        token
    }

    fn unexpected(&self, wanted: &str) -> FilterError {
        let found = match self.peek() {
            Token::End => "the end".to_string(),
            Token::Word(word) => format!("`{word}`"),
            Token::Text(_) => "a text".to_string(),
            Token::Number(number) => format!("`{number}`"),
            Token::Sign(sign) => format!("`{sign}`"),
        };
        FilterError { position: self.position(), reason: format!("expected {wanted}, found {found}") }
    }

    /// Whether the next token is this word, in any case; takes it then.
    fn word(&mut self, wanted: &str) -> bool {
        let found = matches!(self.peek(), Token::Word(word) if word.eq_ignore_ascii_case(wanted));
        if found {
            self.next();
        }
        found
    }

    fn sign(&mut self, wanted: &'static str) -> Result<(), FilterError> {
        if self.peek() == &Token::Sign(wanted) {
            self.next();
            return Ok(());
        }
        Err(self.unexpected(&format!("`{wanted}`")))
    }

    fn or(&mut self) -> Result<Node, FilterError> {
        let mut nodes = vec![self.and()?];
        while self.word("or") {
            nodes.push(self.and()?);
        }
        Ok(if nodes.len() == 1 { nodes.remove(0) } else { Node::Or(nodes) })
    }

    fn and(&mut self) -> Result<Node, FilterError> {
        let mut nodes = vec![self.not()?];
        while self.word("and") {
            nodes.push(self.not()?);
        }
        Ok(if nodes.len() == 1 { nodes.remove(0) } else { Node::And(nodes) })
    }

    fn not(&mut self) -> Result<Node, FilterError> {
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return Err(FilterError { position: self.position(), reason: "it is nested too deeply".into() });
        }
        let node = if self.word("not") {
            Node::Not(Box::new(self.not()?))
        } else if self.peek() == &Token::Sign("(") {
            self.next();
            let node = self.or()?;
            self.sign(")")?;
            node
        } else {
            self.test()?
        };
        self.depth -= 1;
        Ok(node)
    }

    fn test(&mut self) -> Result<Node, FilterError> {
        let position = self.position();
        let Token::Word(column) = self.peek().clone() else { return Err(self.unexpected("a column")) };
        self.next();
        let negated = self.word("not");
        let found = if self.word("in") {
            Test::In(self.list()?)
        } else if self.word("like") {
            match self.peek().clone() {
                Token::Text(text) => {
                    self.next();
                    Test::Like(text.split('%').map(str::to_owned).collect())
                }
                _ => return Err(self.unexpected("a text in single quotes")),
            }
        } else if negated {
            return Err(self.unexpected("`in` or `like`"));
        } else if self.word("is") {
            let negated = self.word("not");
            if !self.word("null") {
                return Err(self.unexpected("`null`"));
            }
            let node = Node::Test { column, position, test: Test::Null };
            return Ok(if negated { Node::Not(Box::new(node)) } else { node });
        } else {
            Test::Compare(self.comparison()?, self.literal()?)
        };
        let node = Node::Test { column, position, test: found };
        Ok(if negated { Node::Not(Box::new(node)) } else { node })
    }

    fn comparison(&mut self) -> Result<Comparison, FilterError> {
        let comparison = match self.peek() {
            Token::Sign("=") => Comparison::Equal,
            Token::Sign("!=") => Comparison::Unequal,
            Token::Sign("<") => Comparison::Less,
            Token::Sign("<=") => Comparison::LessOrEqual,
            Token::Sign(">") => Comparison::Greater,
            Token::Sign(">=") => Comparison::GreaterOrEqual,
            _ => return Err(self.unexpected("a comparison, `like`, `in` or `is`")),
        };
        self.next();
        Ok(comparison)
    }

    fn list(&mut self) -> Result<Vec<Literal>, FilterError> {
        self.sign("(")?;
        let mut literals = vec![self.literal()?];
        while self.peek() == &Token::Sign(",") {
            self.next();
            literals.push(self.literal()?);
        }
        self.sign(")")?;
        Ok(literals)
    }

    fn literal(&mut self) -> Result<Literal, FilterError> {
        let literal = match self.peek().clone() {
            Token::Text(text) => Literal::Text(text),
            Token::Number(number) => Literal::Number(number),
            Token::Word(word) if word.eq_ignore_ascii_case("true") => Literal::Boolean(true),
            Token::Word(word) if word.eq_ignore_ascii_case("false") => Literal::Boolean(false),
            Token::Word(word) if word.eq_ignore_ascii_case("null") => {
                let reason = "nothing equals null; write `is null` or `is not null`".into();
                return Err(FilterError { position: self.position(), reason });
            }
            _ => return Err(self.unexpected("a number, a text in single quotes, an id, true or false")),
        };
        self.next();
        Ok(literal)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dynavault_model::{Column, TableRef, scan};

    fn schema() -> TableSchema {
        let column = |name: &str, member: &str| Column {
            name: name.into(),
            member: member.into(),
            kind: "StringType".into(),
            secured: false,
        };
        TableSchema {
            table: TableRef::ce("account"),
            entity_set: "accounts".into(),
            key: vec!["accountid".into()],
            columns: vec![
                column("name", "name"),
                column("revenue", "revenue"),
                column("statecode", "statecode"),
                column("donotemail", "donotemail"),
                column("createdon", "createdon"),
                column("parentaccountid", "_parentaccountid_value"),
            ],
            content: Vec::new(),
            tracked: true,
            page_rows_max: 5000,
            not_captured: Vec::new(),
            definition: serde_json::Value::Null,
        }
    }

    const ROW: &str = r#"{"accountid":"0fe1c2d3-a4b5-46c7-88d9-eafb0c1d2e3f","name":"Adventure \"Works\" ä%","revenue":20000.0000,"statecode":0,"donotemail":false,"createdon":"2024-05-01T13:45:00Z","_parentaccountid_value":"0fe1c2d3-a4b5-46c7-88d9-eafb0c1d2e30","fax":null}"#;

    fn matches(expression: &str) -> bool {
        let mut members = Vec::new();
        scan(ROW.as_bytes(), &mut members).unwrap();
        let filter = Filter::parse(expression).unwrap().bind(&schema()).unwrap();
        filter.matches(&Row::new(ROW.as_bytes(), &members))
    }

    #[test]
    fn conditions_select_as_documented() {
        for (expression, expected) in [
            ("revenue = 20000", true),
            ("revenue = 2e4", true),
            ("revenue > 19999.99999999999999999999999999", true),
            ("revenue < 20000.00000000000000000000000001", true),
            ("revenue != 20000.0", false),
            ("revenue >= -5 and not revenue <= 0", true),
            ("name like 'Adventure%'", true),
            ("name like '%\"Works\"%'", true),
            ("name like 'adventure%'", false),
            ("name not like '%ä%'", false),
            ("name = 'Adventure'", false),
            ("statecode in (1, 2)", false),
            ("statecode not in (1,2)", true),
            ("statecode in (1,0)", true),
            ("donotemail = false", true),
            ("createdon >= '2024-05-01' and createdon < '2024-05-02'", true),
            ("parentaccountid = '0FE1C2D3-A4B5-46C7-88D9-EAFB0C1D2E30'", true),
            ("_parentaccountid_value = 0fe1c2d3-a4b5-46c7-88d9-eafb0c1d2e30", true),
            ("accountid = {0FE1C2D3-A4B5-46C7-88D9-EAFB0C1D2E3F}", true),
            ("name is not null AND (statecode = 1 OR revenue > 1)", true),
            ("name is null", false),
            ("statecode = 1 or statecode = 2 and name like '%'", false),
            ("name = 'it''s'", false),
        ] {
            assert_eq!(matches(expression), expected, "{expression}");
        }
    }

    #[test]
    fn a_missing_value_or_one_of_another_kind_satisfies_neither_a_test_nor_its_negation() {
        for expression in ["name > 5", "not (name > 5)", "statecode = 'open'", "not (statecode = 'open')"] {
            assert!(!matches(expression), "{expression}");
        }
        let mut members = Vec::new();
        scan(br#"{"name":null}"#, &mut members).unwrap();
        let row = Row::new(br#"{"name":null}"#, &members);
        let holds = |text: &str| Filter::parse(text).unwrap().bind(&schema()).unwrap().matches(&row);
        assert!(holds("name is null and revenue is null"));
        assert!(!holds("not (revenue > 5)"));
        assert!(!holds("name not in ('a')"));
        assert!(holds("name = 'a' or revenue is null"));
    }

    #[test]
    fn mistakes_are_named_with_their_place() {
        for (expression, position, words) in [
            ("", 1, "expected a column, found the end"),
            ("name", 5, "expected a comparison"),
            ("name = ", 8, "expected a number"),
            ("name = 'open", 8, "no end quote"),
            ("name = null", 8, "is null"),
            ("name = abc", 8, "expected a number"),
            ("name ~ 1", 6, "`~` has no meaning"),
            ("(name = 1", 10, "expected `)`"),
            ("name = 1 name = 2", 10, "expected `and`, `or` or the end"),
            ("statecode in ()", 15, "expected a number"),
            ("name = 12x", 8, "neither a number nor an id"),
            ("name not = 1", 10, "expected `in` or `like`"),
        ] {
            let error = Filter::parse(expression).unwrap_err();
            assert_eq!(error.position, position, "{expression}: {error}");
            assert!(error.reason.contains(words), "{expression}: {error}");
        }
        let error = Filter::parse("name = 'a' or fax = 1").unwrap().bind(&schema()).unwrap_err();
        assert_eq!((error.position, error.reason.as_str()), (15, "table account has no captured column fax"));
        assert!(Filter::parse(&"(".repeat(1000)).unwrap_err().reason.contains("nested too deeply"));
    }

    #[test]
    fn decimals_are_compared_without_rounding() {
        let order = |a, b| compare_decimals(a, b).unwrap();
        assert_eq!(order("9007199254740993", "9007199254740992"), Ordering::Greater);
        assert_eq!(order("0.1", "0.10000"), Ordering::Equal);
        assert_eq!(order("-0", "0.00"), Ordering::Equal);
        assert_eq!(order("1e400", "1e399"), Ordering::Greater);
        assert_eq!(order("-1e-400", "-1e-399"), Ordering::Greater);
        assert_eq!(order("0.009", "0.01"), Ordering::Less);
        assert_eq!(order("100", "99.999"), Ordering::Greater);
        assert_eq!(compare_decimals("1.2.3", "1"), None);
    }
}
