//! Query options of Graph: select, filter, pages (entra 11).

use serde_json::{Map, Value, json};

use crate::graph::{GraphError, GraphQuirk, GraphState};
use crate::query::pairs;

/// Page where `$top` is missing.
const PAGE_DEFAULT: usize = 100;
/// Largest page.
const PAGE_MAX: usize = 999;
/// Beginning of a skip token; after it comes `f` or `e` (a page that stays empty) and the position.
const SKIP_MARK: &str = "RFNwd";

/// One condition: the property is one of the values.
#[derive(Debug, PartialEq, Eq)]
struct Condition {
    property: String,
    values: Vec<String>,
}

/// The options of a request.
#[derive(Debug, Default)]
pub(crate) struct Options {
    select: Option<Vec<String>>,
    conditions: Vec<Condition>,
    top: Option<usize>,
    count: bool,
    skip_token: Option<String>,
    /// The query without the skip token, to be repeated in links.
    rest: String,
}

impl Options {
    pub(crate) fn parse(query: &str, consistency: Option<&str>) -> Result<Self, GraphError> {
        let mut options = Self::default();
        let mut rest = Vec::new();
        let eventual = consistency.is_some_and(|level| level.eq_ignore_ascii_case("eventual"));
        for (name, value, raw) in pairs(query) {
            if name != "$skiptoken" {
                rest.push(format!("{name}={raw}"));
            }
            match name.as_str() {
                "$select" => {
                    options.select = Some(value.split(',').map(|name| name.trim().to_owned()).collect());
                }
                "$filter" => options.conditions = conditions(&value)?,
                "$top" => {
                    let top = value.parse().ok().filter(|top| (1..=PAGE_MAX).contains(top));
                    options.top = Some(top.ok_or_else(|| {
                        GraphError::bad(format!(
                            "Invalid page size specified: '{value}'. Must be between 1 and {PAGE_MAX} inclusive."
                        ))
                    })?);
                }
                "$count" => options.count = value == "true",
                "$skiptoken" => options.skip_token = Some(value),
                "$skip" => return Err(GraphError::bad("'$skip' is not supported by the service.")),
                name if name.starts_with('$') => {
                    return Err(GraphError::unsupported(format!("The query option '{name}' is not supported here.")));
                }
                _ => {}
            }
        }
        if options.count && !eventual {
            return Err(GraphError::unsupported(
                "$count is not currently supported. Add the header 'ConsistencyLevel: eventual'.",
            ));
        }
        options.rest = rest.join("&");
        Ok(options)
    }

    /// One object with the selected properties.
    pub(crate) fn one(&self, root: &str, kind: &str, object: Value) -> Result<Value, GraphError> {
        let object = self.select(kind, object)?;
        let mut out = Map::new();
        out.insert("@odata.context".to_owned(), json!(format!("{root}/v1.0/$metadata#{kind}/$entity")));
        if let Value::Object(object) = object {
            out.extend(object);
        }
        Ok(Value::Object(out))
    }

    /// One page of a collection; `path` is where it lies below the root.
    pub(crate) fn page(
        &self,
        state: &GraphState,
        root: &str,
        path: &str,
        kind: &str,
        objects: Vec<Value>,
    ) -> Result<Value, GraphError> {
        let mut found = Vec::new();
        for object in objects {
            if self.matches(kind, &object)? {
                found.push(object);
            }
        }
        let total = found.len();
        let size = self.top.unwrap_or(PAGE_DEFAULT).min(state.page_size.unwrap_or(PAGE_MAX)).max(1);
        let (blank, start) = match &self.skip_token {
            None => (false, 0),
            Some(token) => read_skip_token(token).ok_or_else(|| GraphError::bad("The skip token is not valid."))?,
        };
        let end = if blank { start } else { total.min(start.saturating_add(size)) };
        let page = found.into_iter().skip(start).take(end.saturating_sub(start));
        let value = page.map(|object| self.select(kind, object)).collect::<Result<Vec<_>, _>>()?;
        let mut out = json!({"@odata.context": format!("{root}/v1.0/$metadata#{kind}"), "value": value});
        if self.count && self.skip_token.is_none() {
            out["@odata.count"] = json!(total);
        }
        if end < total {
            // The page after the first is empty and still has a next link, which is legal.
            let mark = if start == 0 && !blank { 'e' } else { 'f' };
            let own = self.skip_token.clone().filter(|_| state.quirk == Some(GraphQuirk::RepeatedLink));
            let token = own.unwrap_or_else(|| format!("{SKIP_MARK}{mark}{end}"));
            let root =
                if state.quirk == Some(GraphQuirk::ForeignLink) { "http://elsewhere.example/graph" } else { root };
            let joint = if self.rest.is_empty() { "" } else { "&" };
            out["@odata.nextLink"] = json!(format!("{root}/v1.0/{path}?{}{joint}$skiptoken={token}", self.rest));
        }
        Ok(out)
    }

    fn matches(&self, kind: &str, object: &Value) -> Result<bool, GraphError> {
        for condition in &self.conditions {
            let Some(value) = object.get(&condition.property) else {
                return Err(no_property(kind, &condition.property));
            };
            let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            if !condition.values.contains(&text) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn select(&self, kind: &str, object: Value) -> Result<Value, GraphError> {
        let Some(names) = &self.select else { return Ok(object) };
        let mut out = Map::new();
        for name in names {
            let value = object.get(name).ok_or_else(|| no_property(kind, name))?;
            out.insert(name.clone(), value.clone());
        }
        Ok(Value::Object(out))
    }
}

fn no_property(kind: &str, name: &str) -> GraphError {
    GraphError::bad(format!("Could not find a property named '{name}' on type 'microsoft.graph.{kind}'."))
}

fn read_skip_token(token: &str) -> Option<(bool, usize)> {
    let rest = token.strip_prefix(SKIP_MARK)?;
    let (mark, position) = rest.split_at_checked(1)?;
    Some((mark == "e", position.parse().ok()?))
}

/// `property eq 'value'` and `property in ('a','b')`, joined by `and`.
fn conditions(text: &str) -> Result<Vec<Condition>, GraphError> {
    let refuse = || GraphError::unsupported(format!("Invalid filter clause: '{text}'."));
    text.split(" and ")
        .map(|part| {
            let mut words = part.trim().splitn(3, ' ');
            let (property, operator, value) =
                (words.next().ok_or_else(refuse)?, words.next().ok_or_else(refuse)?, words.next().ok_or_else(refuse)?);
            let values = match operator {
                "eq" => vec![literal(value).ok_or_else(refuse)?],
                "in" => value
                    .trim()
                    .strip_prefix('(')
                    .and_then(|rest| rest.strip_suffix(')'))
                    .and_then(|list| list.split(',').map(literal).collect::<Option<Vec<_>>>())
                    .ok_or_else(refuse)?,
                _ => return Err(refuse()),
            };
            Ok(Condition { property: property.to_owned(), values })
        })
        .collect()
}

/// A quoted text, with doubled quotes, or a bare number or Boolean.
fn literal(text: &str) -> Option<String> {
    let text = text.trim();
    match text.strip_prefix('\'') {
        Some(rest) => Some(rest.strip_suffix('\'')?.replace("''", "'")),
        None if matches!(text, "true" | "false") || text.parse::<i64>().is_ok() => Some(text.to_owned()),
        None => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{Options, conditions};
    use crate::graph::{GraphQuirk, GraphState};

    #[test]
    fn filters_are_read() {
        let found = conditions("appId in ('a', 'b''c') and accountEnabled eq true").unwrap();
        assert_eq!(found[0].values, ["a", "b'c"]);
        assert_eq!((found[1].property.as_str(), found[1].values[0].as_str()), ("accountEnabled", "true"));
        assert!(conditions("startswith(displayName,'a')").is_err());
        assert!(conditions("appId eq a").is_err());
    }

    /// Pages of 250 objects: sizes, and whether the end was reached.
    fn walk(quirk: Option<GraphQuirk>, most: usize) -> (Vec<usize>, bool) {
        let state = GraphState { quirk, ..GraphState::default() };
        let objects: Vec<Value> = (0..250).map(|id| json!({"id": id})).collect();
        let (mut query, mut sizes) = ("$select=id".to_owned(), Vec::new());
        while sizes.len() < most {
            let page = Options::parse(&query, None)
                .unwrap()
                .page(&state, "root", "groups", "groups", objects.clone())
                .unwrap();
            sizes.push(page["value"].as_array().unwrap().len());
            let Some(link) = page["@odata.nextLink"].as_str() else { return (sizes, true) };
            query = link.split_once('?').unwrap().1.to_owned();
        }
        (sizes, false)
    }

    #[test]
    fn the_second_page_is_empty_and_the_rest_follows() {
        assert_eq!(walk(None, 9), (vec![100, 0, 100, 50], true));
        assert_eq!(walk(Some(GraphQuirk::RepeatedLink), 5), (vec![100, 0, 0, 0, 0], false));
    }

    #[test]
    fn counting_needs_the_header_and_sizes_have_an_end() {
        assert!(Options::parse("$count=true", None).is_err());
        assert!(Options::parse("$count=true", Some("eventual")).is_ok());
        assert!(Options::parse("$top=1000", None).is_err());
        assert!(Options::parse("$skip=1", None).is_err());
    }
}
