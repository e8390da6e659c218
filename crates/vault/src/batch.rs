//! A batch: rows as one line of column-major JSON, and back.
//!
//! ```text
//! {"@rows":3,"@absent":{"b":[1,1]},"id":["…","…","…"],"a":[1,null,2.50],"b":["x",null,"y"]}
//! ```
//!
//! Every array has one entry per row, in row order; an entry is the bytes the service sent. Two things plain arrays cannot
//! say are said beside them:
//!
//! - **absent is not null**: `@absent` gives, per column, alternating counts of rows that have the member and rows that
//!   lack it, starting with those that have it; rows after the last count have it. An absent entry is filled with `null`.
//!   A string in place of the list names another column of the batch with the same list.
//! - **order of keys**: a row's members come in the order of the batch's columns. Rows for which that is not so are in
//!   `@order`, which gives for the row's number the list of its member names.
//!
//! Member names that begin with `@` and hold no dot, which no OData annotation does, get one more `@`, so they cannot
//! collide with the batch's own words.

use std::collections::HashMap;
use std::io::{self, Write};

use dynavault_model::Row;

/// A row that cannot be put into a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    /// A member appears twice; JSON leaves open which one counts, so neither may be dropped silently.
    #[error("a row has the same member twice")]
    DuplicateMember,
}

/// Capacity above which a column's buffer is given back after a batch, so that one huge value is not paid for ever.
const KEPT_CAPACITY_BYTES: usize = 1 << 20;

/// Most columns a batch tracks; beyond it the batch is full. Dataverse tables have at most about a thousand.
const COLUMNS_MAX: usize = 20_000;

/// Sixteen nulls, each with its comma.
const NULLS: &[u8] = b"null,null,null,null,null,null,null,null,null,null,null,null,null,null,null,null,";

/// Values up to this length are copied in one piece with what follows them.
const SHORT_BYTES: usize = 48;

/// No column is known for a name's number.
const UNKNOWN: u32 = u32::MAX;
/// Most numbers of names that are remembered.
const NUMBERS_MAX: usize = 4096;

#[derive(Debug)]
struct ColumnBuffer {
    name: Box<[u8]>,
    /// Values, each followed by a comma.
    values: Vec<u8>,
    /// Rows filled so far, present or absent.
    rows: u32,
    /// Nulls at the end that are counted and not written yet: half of a wide row is null, and counting is cheaper.
    nulls: u32,
    /// Alternating counts: present, absent, present, absent …
    absent: Vec<u32>,
    /// First row of the present stretch that is going on.
    present_since: u32,
}

impl ColumnBuffer {
    /// Adds a value that is `bytes[start..end]` and is followed by one more byte, as every value of a row is.
    #[inline]
    fn push(&mut self, row: u32, bytes: &[u8], start: usize, end: usize) {
        if self.rows != row {
            self.fill(row);
        }
        self.rows = row + 1;
        if end - start == 4 && bytes[start] == b'n' {
            self.nulls += 1;
            return;
        }
        if self.nulls > 0 {
            self.write_nulls();
        }
        let before = self.values.len();
        // Most values are short, and a copy of fixed length is a couple of instructions where one of any length is a call.
        match bytes.get(start..start + SHORT_BYTES) {
            Some(window) if end - start < SHORT_BYTES => {
                self.values.extend_from_slice(window);
                self.values.truncate(before + end - start + 1);
            }
            _ => self.values.extend_from_slice(&bytes[start..=end]),
        }
        self.values[before + end - start] = b',';
    }

    fn write_nulls(&mut self) {
        let mut left = self.nulls as usize * NULLS.len() / 16;
        while left > 0 {
            let piece = left.min(NULLS.len());
            self.values.extend_from_slice(&NULLS[..piece]);
            left -= piece;
        }
        self.nulls = 0;
    }

    /// Marks the rows from the last one filled up to `row` as absent.
    #[cold]
    fn fill(&mut self, row: u32) {
        if self.rows == row {
            return;
        }
        self.absent.push(self.rows - self.present_since);
        self.absent.push(row - self.rows);
        self.nulls += row - self.rows;
        self.rows = row;
        self.present_since = row;
    }

    fn clear(&mut self) {
        self.values.clear();
        if self.values.capacity() > KEPT_CAPACITY_BYTES {
            self.values.shrink_to(KEPT_CAPACITY_BYTES / 4);
        }
        self.rows = 0;
        self.nulls = 0;
        self.absent.clear();
        self.present_since = 0;
    }
}

/// Gathers rows until the batch is written.
#[derive(Debug, Default)]
pub struct BatchBuilder {
    columns: Vec<ColumnBuffer>,
    /// Column numbers in the order they are written.
    order: Vec<u32>,
    by_name: HashMap<Box<[u8]>, u32>,
    /// Place of each column in `order`.
    place: Vec<u32>,
    rows: u32,
    raw_bytes: usize,
    /// Rows whose members do not come in the order of the columns.
    reordered: Vec<(u32, Vec<u32>)>,
    /// Column number of each member of the row at hand.
    scratch: Vec<u32>,
    /// Column of each numbered name of the scanner with this serial.
    by_number: Vec<u32>,
    serial: u64,
}

impl BatchBuilder {
    /// Rows gathered.
    pub fn rows(&self) -> u32 {
        self.rows
    }

    /// Bytes of row JSON gathered.
    pub fn raw_bytes(&self) -> usize {
        self.raw_bytes
    }

    /// Whether another row might need more columns than a batch tracks.
    pub fn columns_full(&self) -> bool {
        self.columns.len() > COLUMNS_MAX
    }

    /// Adds a row; on an error the batch is as before.
    pub fn push(&mut self, row: &Row<'_>) -> Result<(), BatchError> {
        // First find each member's column, so that a bad row leaves nothing behind. A scanner numbers the names, so
        // that a name is compared with another once per row and not looked up again here.
        self.scratch.clear();
        if row.serial() != self.serial {
            self.serial = row.serial();
            self.by_number.clear();
        }
        let mut cursor = 0_u32;
        let mut in_order = true;
        for member in row.members() {
            let column = match self.by_number.get(member.name as usize) {
                Some(&column) if column != UNKNOWN => column,
                _ => self.column(row.key(member), cursor as usize, member.name),
            };
            let place = self.place[column as usize];
            if place < cursor {
                in_order = false;
            } else {
                cursor = place + 1;
            }
            self.scratch.push(column);
        }
        if !in_order {
            // Only a row out of order can hold a member twice: in order, the cursor has passed the first one.
            let mut seen = self.scratch.clone();
            seen.sort_unstable();
            if seen.windows(2).any(|pair| pair[0] == pair[1]) {
                return Err(BatchError::DuplicateMember);
            }
            self.reordered.push((self.rows, self.scratch.clone()));
        }
        for (member, column) in row.members().iter().zip(&self.scratch) {
            let (start, end) = (member.value_start as usize, member.value_end as usize);
            self.columns[*column as usize].push(self.rows, row.bytes(), start, end);
        }
        self.rows += 1;
        self.raw_bytes += row.bytes().len();
        Ok(())
    }

    /// The column of a name, a new one at `at` in the order if there is none; remembers it for the name's number.
    #[cold]
    fn column(&mut self, key: &[u8], at: usize, number: u32) -> u32 {
        let column = match self.by_name.get(key) {
            Some(column) => *column,
            None => self.add_column(key, at),
        };
        if self.serial != 0 && (number as usize) < NUMBERS_MAX {
            if self.by_number.len() <= number as usize {
                self.by_number.resize(number as usize + 1, UNKNOWN);
            }
            self.by_number[number as usize] = column;
        }
        column
    }

    fn add_column(&mut self, key: &[u8], at: usize) -> u32 {
        let column = self.columns.len() as u32;
        let name: Box<[u8]> = key.into();
        self.columns.push(ColumnBuffer {
            name: name.clone(),
            values: Vec::new(),
            rows: 0,
            nulls: 0,
            absent: Vec::new(),
            present_since: 0,
        });
        self.by_name.insert(name, column);
        self.order.insert(at, column);
        self.place.push(0);
        for (place, column) in self.order.iter().enumerate().skip(at) {
            self.place[*column as usize] = place as u32;
        }
        column
    }

    /// Writes the batch as one line, without the line break, and starts an empty one. Column order is kept for the next batch.
    pub fn write_line(&mut self, out: &mut impl Write) -> io::Result<()> {
        let rows = self.rows;
        let used: Vec<u32> =
            self.order.iter().copied().filter(|column| self.columns[*column as usize].rows > 0).collect();
        for column in &used {
            let column = &mut self.columns[*column as usize];
            column.fill(rows);
            column.write_nulls();
        }
        write!(out, "{{\"@rows\":{rows}")?;
        self.write_absent(&used, out)?;
        self.write_order(out)?;
        for column in &used {
            let column = &self.columns[*column as usize];
            out.write_all(b",\"")?;
            write_name(&column.name, out)?;
            out.write_all(b"\":[")?;
            out.write_all(&column.values[..column.values.len() - 1])?;
            out.write_all(b"]")?;
        }
        out.write_all(b"}")?;
        self.clear();
        Ok(())
    }

    fn write_absent(&self, used: &[u32], out: &mut impl Write) -> io::Result<()> {
        let mut written: HashMap<&[u32], &[u8]> = HashMap::new();
        for column in used.iter().map(|column| &self.columns[*column as usize]).filter(|c| !c.absent.is_empty()) {
            out.write_all(if written.is_empty() { b",\"@absent\":{\"" } else { b",\"" })?;
            write_name(&column.name, out)?;
            if let Some(same) = written.get(column.absent.as_slice()) {
                out.write_all(b"\":\"")?;
                write_name(same, out)?;
                out.write_all(b"\"")?;
                continue;
            }
            out.write_all(b"\":[")?;
            for (index, count) in column.absent.iter().enumerate() {
                if index > 0 {
                    out.write_all(b",")?;
                }
                write!(out, "{count}")?;
            }
            out.write_all(b"]")?;
            written.insert(&column.absent, &column.name);
        }
        if written.is_empty() { Ok(()) } else { out.write_all(b"}") }
    }

    fn write_order(&self, out: &mut impl Write) -> io::Result<()> {
        for (index, (row, columns)) in self.reordered.iter().enumerate() {
            write!(out, "{}\"{row}\":[", if index == 0 { ",\"@order\":{" } else { "," })?;
            for (place, column) in columns.iter().enumerate() {
                out.write_all(if place == 0 { b"\"" } else { b",\"" })?;
                write_name(&self.columns[*column as usize].name, out)?;
                out.write_all(b"\"")?;
            }
            out.write_all(b"]")?;
        }
        if self.reordered.is_empty() { Ok(()) } else { out.write_all(b"}") }
    }

    fn clear(&mut self) {
        self.rows = 0;
        self.raw_bytes = 0;
        self.reordered.clear();
        if self.columns_full() {
            *self = Self::default();
            return;
        }
        for column in &mut self.columns {
            column.clear();
        }
    }
}

/// Whether a name would be read as one of the batch's own words.
fn needs_escape(name: &[u8]) -> bool {
    name.first() == Some(&b'@') && !name.contains(&b'.')
}

fn write_name(name: &[u8], out: &mut impl Write) -> io::Result<()> {
    if needs_escape(name) {
        out.write_all(b"@")?;
    }
    out.write_all(name)
}

/// The stored name without its escape; `None` for one of the batch's own words.
fn plain_name(stored: &[u8]) -> Option<&[u8]> {
    if needs_escape(stored) {
        stored.strip_prefix(b"@").filter(|rest| rest.first() == Some(&b'@'))
    } else {
        Some(stored)
    }
}

/// A line that is not a batch of this format.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a batch of rows: {0}")]
pub struct NotABatch(pub &'static str);

struct ColumnReader<'a> {
    name: &'a [u8],
    items: Vec<(u32, u32)>,
    values: &'a [u8],
    absent: Vec<u32>,
}

/// A decoded batch, borrowing the line.
pub struct Batch<'a> {
    rows: u32,
    columns: Vec<ColumnReader<'a>>,
    /// Per column, whether each row has the member.
    present: Vec<Vec<bool>>,
    order: HashMap<u32, Vec<usize>>,
}

impl<'a> Batch<'a> {
    /// Reads a line written by [`BatchBuilder::write_line`].
    pub fn parse(line: &'a [u8]) -> Result<Self, NotABatch> {
        let mut members = Vec::new();
        let (length, spaced) = match dynavault_model::scan(line, &mut members) {
            Ok(dynavault_model::Scan::Complete { length, spaced }) => (length, spaced),
            Ok(dynavault_model::Scan::Incomplete) => return Err(NotABatch("the line ends early")),
            Err(_) => return Err(NotABatch("the line is not a JSON object")),
        };
        if spaced || line[length..].iter().any(|byte| *byte != b'\n') {
            return Err(NotABatch("there is something between or after the tokens"));
        }
        let object = Row::new(&line[..length], &members);
        let rows: u32 = object
            .get("@rows")
            .and_then(|value| std::str::from_utf8(value).ok()?.parse().ok())
            .ok_or(NotABatch("@rows is missing"))?;
        let mut columns = Vec::with_capacity(members.len());
        let mut by_name: HashMap<&[u8], usize> = HashMap::new();
        for member in &members {
            let Some(name) = plain_name(&line[member.key_start as usize..member.key_end as usize]) else { continue };
            let values = &line[member.value_start as usize..member.value_end as usize];
            let mut items = Vec::with_capacity(rows as usize);
            dynavault_model::array_items(values, &mut items).map_err(|_| NotABatch("a column is not an array"))?;
            if items.len() != rows as usize {
                return Err(NotABatch("a column does not have one entry per row"));
            }
            by_name.insert(name, columns.len());
            columns.push(ColumnReader { name, items, values, absent: Vec::new() });
        }
        if let Some(value) = object.get("@absent") {
            read_absent(value, &mut columns, &by_name)?;
        }
        let mut order = HashMap::new();
        if let Some(value) = object.get("@order") {
            read_order(value, &by_name, &mut order)?;
        }
        let present = columns.iter().map(|column| presence(&column.absent, rows)).collect::<Result<_, _>>()?;
        Ok(Self { rows, columns, present, order })
    }

    /// Rows in the batch.
    pub fn rows(&self) -> u32 {
        self.rows
    }

    /// Appends the row as the JSON object that was captured.
    pub fn write_row(&self, row: u32, out: &mut Vec<u8>) {
        out.push(b'{');
        let mut first = true;
        let mut write = |column: usize| {
            let reader = &self.columns[column];
            if !first {
                out.push(b',');
            }
            first = false;
            out.push(b'"');
            out.extend_from_slice(reader.name);
            out.extend_from_slice(b"\":");
            let (start, end) = reader.items[row as usize];
            out.extend_from_slice(&reader.values[start as usize..end as usize]);
        };
        if let Some(columns) = self.order.get(&row) {
            columns.iter().copied().for_each(&mut write);
        } else {
            (0..self.columns.len()).filter(|column| self.present[*column][row as usize]).for_each(&mut write);
        }
        out.push(b'}');
    }
}

fn read_absent(
    value: &[u8],
    columns: &mut [ColumnReader<'_>],
    by_name: &HashMap<&[u8], usize>,
) -> Result<(), NotABatch> {
    let mut members = Vec::new();
    dynavault_model::scan(value, &mut members).map_err(|_| NotABatch("@absent is not an object"))?;
    let lists = Row::new(value, &members);
    for member in &members {
        let column = plain_name(lists.key(member))
            .and_then(|name| by_name.get(name))
            .ok_or(NotABatch("@absent names an unknown column"))?;
        columns[*column].absent = match lists.value(member) {
            [b'"', same @ .., b'"'] => plain_name(same)
                .and_then(|name| by_name.get(name))
                .map(|same| columns[*same].absent.clone())
                .ok_or(NotABatch("@absent refers to an unknown column"))?,
            list => serde_json::from_slice(list).map_err(|_| NotABatch("@absent is not a list of counts"))?,
        };
    }
    Ok(())
}

fn read_order(
    value: &[u8],
    by_name: &HashMap<&[u8], usize>,
    order: &mut HashMap<u32, Vec<usize>>,
) -> Result<(), NotABatch> {
    let mut members = Vec::new();
    dynavault_model::scan(value, &mut members).map_err(|_| NotABatch("@order is not an object"))?;
    let lists = Row::new(value, &members);
    for member in &members {
        let row = std::str::from_utf8(lists.key(member)).ok().and_then(|key| key.parse().ok());
        let mut items = Vec::new();
        dynavault_model::array_items(lists.value(member), &mut items).map_err(|_| NotABatch("@order is not a list"))?;
        let names: Option<Vec<usize>> = items
            .iter()
            .map(|(start, end)| match &lists.value(member)[*start as usize..*end as usize] {
                [b'"', name @ .., b'"'] => plain_name(name).and_then(|name| by_name.get(name)).copied(),
                _ => None,
            })
            .collect();
        let (Some(row), Some(names)) = (row, names) else { return Err(NotABatch("@order names an unknown column")) };
        order.insert(row, names);
    }
    Ok(())
}

fn presence(absent: &[u32], rows: u32) -> Result<Vec<bool>, NotABatch> {
    let mut present = Vec::with_capacity(rows as usize);
    for (index, count) in absent.iter().enumerate() {
        let filled = present.len() + *count as usize;
        if filled > rows as usize {
            return Err(NotABatch("@absent counts more rows than there are"));
        }
        present.resize(filled, index % 2 == 0);
    }
    present.resize(rows as usize, true);
    Ok(present)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round_trip(rows: &[&str]) -> (String, Vec<String>) {
        let mut builder = BatchBuilder::default();
        for row in rows {
            let mut members = Vec::new();
            dynavault_model::scan(row.as_bytes(), &mut members).unwrap();
            builder.push(&Row::new(row.as_bytes(), &members)).unwrap();
        }
        let mut line = Vec::new();
        builder.write_line(&mut line).unwrap();
        let batch = Batch::parse(&line).unwrap();
        let back = (0..batch.rows())
            .map(|row| {
                let mut out = Vec::new();
                batch.write_row(row, &mut out);
                String::from_utf8(out).unwrap()
            })
            .collect();
        (String::from_utf8(line.clone()).unwrap(), back)
    }

    #[test]
    fn rows_come_back_with_values_absences_and_key_order() {
        let rows = [
            r#"{"id":"1","a":1.50,"a@x.y":"t","b":null}"#,
            r#"{"id":"2","a":null,"b":"\u0001"}"#,
            r#"{"b":1,"id":"3"}"#,
            r#"{"id":"4","new":{"k":[1,2]},"a":0,"a@x.y":"u","b":2}"#,
            "{}",
        ];
        let (line, back) = round_trip(&rows);
        assert_eq!(back, rows);
        assert!(!line.contains('\n'));
        let value: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(value["a"].as_array().unwrap().len(), 5);
    }

    #[test]
    fn names_that_look_like_our_own_words_are_kept_apart() {
        let rows = [r#"{"@rows":7,"@@rows":8,"@odata.etag":"x","@absent":{}}"#, r#"{"@odata.etag":"y","@rows":1}"#];
        let (_, back) = round_trip(&rows);
        assert_eq!(back, rows);
    }

    #[test]
    fn a_member_twice_is_refused_and_leaves_the_batch_as_it_was() {
        let mut builder = BatchBuilder::default();
        for (text, ok) in [(r#"{"a":1,"b":2}"#, true), (r#"{"a":1,"b":2,"a":3}"#, false), (r#"{"c":1,"c":2}"#, false)] {
            let mut members = Vec::new();
            dynavault_model::scan(text.as_bytes(), &mut members).unwrap();
            assert_eq!(builder.push(&Row::new(text.as_bytes(), &members)).is_ok(), ok, "{text}");
        }
        let mut line = Vec::new();
        builder.write_line(&mut line).unwrap();
        assert_eq!(line, br#"{"@rows":1,"a":[1],"b":[2]}"#);
    }

    #[test]
    fn a_second_batch_does_not_remember_the_first() {
        let mut builder = BatchBuilder::default();
        for text in [r#"{"a":1,"b":2}"#, r#"{"a":3}"#] {
            let mut members = Vec::new();
            dynavault_model::scan(text.as_bytes(), &mut members).unwrap();
            builder.push(&Row::new(text.as_bytes(), &members)).unwrap();
            let mut line = Vec::new();
            builder.write_line(&mut line).unwrap();
            let batch = Batch::parse(&line).unwrap();
            let mut out = Vec::new();
            batch.write_row(0, &mut out);
            assert_eq!(out, text.as_bytes());
        }
    }

    #[test]
    fn damaged_lines_are_refused() {
        for line in [
            "{}",
            "[1]",
            r#"{"@rows":2,"a":[1]}"#,
            r#"{"@rows":1,"a":1}"#,
            r#"{"@rows":1,"a":[1],"@absent":{"z":[0,1]}}"#,
            r#"{"@rows":1,"a":[1],"@absent":{"a":[0,9]}}"#,
            r#"{"@rows":1,"a":[1],"@order":{"0":["q"]}}"#,
            r#"{"@rows":1,"a":[1]"#,
        ] {
            assert!(Batch::parse(line.as_bytes()).is_err(), "{line} was accepted");
        }
    }
}
