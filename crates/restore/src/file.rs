//! Plan files on disk: written in one stream, believed only when every byte is as it was written.
//!
//! A plan is what somebody has read and agreed to, so a file that was cut, edited or made for another program is refused as a
//! whole, before its first operation is looked at. [`PlanFile::open`] reads the file once from end to end: the digest in the
//! last line covers every byte before it, operations are numbered without gaps and in the order of their steps, and no line
//! holds anything this version does not know (a field that was ignored might be the one that matters).
//!
//! The digest protects against accidents and careless edits, not against somebody who can write the file and knows how it
//! is made; the folder's permissions do that. Files are made with mode 0600: they hold row values.

use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use dynavault_model::EnvironmentIdentity;
use serde::Deserialize;

use crate::error::RestoreError;
use crate::plan::{Conflict, Counts, FORMAT, Finding, Op, PlanEnd, PlanHead, PlanLine, Step, TablePlan};

/// Longest line: an operation holds a row twice at most (`set` and `from`), and a row has at most 64 MiB when it is read.
const LINE_BYTES_MAX: usize = 192 << 20;
/// Most tables of a plan, and most findings; both are held in memory. An environment has a few thousand tables.
const LISTED_MAX: usize = 100_000;
/// Buffer of reading and writing.
const BUFFER_BYTES: usize = 1 << 20;

const END: &[u8] = b"{\"end\":";
const OP: &[u8] = b"{\"op\":{\"n\":";

/// Writes a plan. The file appears under its name when it is finished, and not at all otherwise.
pub struct PlanWriter {
    path: PathBuf,
    partial: PathBuf,
    out: Option<BufWriter<File>>,
    hasher: blake3::Hasher,
    ops: u64,
}

impl PlanWriter {
    /// Begins a plan beside `path`.
    pub fn create(path: &Path, head: &PlanHead) -> Result<Self, RestoreError> {
        let mut partial = path.as_os_str().to_owned();
        partial.push(".partial");
        let partial = PathBuf::from(partial);
        let file = private_file(&partial).map_err(|source| failed(&partial, source))?;
        let out = Some(BufWriter::with_capacity(BUFFER_BYTES, file));
        let mut writer = Self { path: path.to_path_buf(), partial, out, hasher: blake3::Hasher::new(), ops: 0 };
        writer.line(&PlanLine::Head(Box::new(head.clone())))?;
        Ok(writer)
    }

    /// Adds a table.
    pub fn table(&mut self, table: &TablePlan) -> Result<(), RestoreError> {
        self.line(&PlanLine::Table(table.clone()))
    }

    /// Adds a finding.
    pub fn finding(&mut self, finding: &Finding) -> Result<(), RestoreError> {
        self.line(&PlanLine::Finding(finding.clone()))
    }

    /// Adds a conflict.
    pub fn conflict(&mut self, conflict: &Conflict) -> Result<(), RestoreError> {
        self.line(&PlanLine::Conflict(conflict.clone()))
    }

    /// Adds an operation and numbers it. Operations come in the order of their steps and waves.
    pub fn op(&mut self, op: &mut Op) -> Result<(), RestoreError> {
        op.n = self.ops;
        let text = op_line(op).map_err(|source| failed(&self.partial, source))?;
        self.op_text(&text)
    }

    /// Adds an operation as [`op_line`] spelled it, with its number put in.
    pub(crate) fn op_text(&mut self, text: &[u8]) -> Result<(), RestoreError> {
        let rest = text.strip_prefix(OP).unwrap_or(text);
        let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
        let mut line = Vec::with_capacity(text.len() + 20);
        line.extend_from_slice(OP);
        line.extend_from_slice(self.ops.to_string().as_bytes());
        line.extend_from_slice(&rest[digits..]);
        line.push(b'\n');
        self.ops += 1;
        self.put(&line)
    }

    fn line(&mut self, line: &PlanLine) -> Result<(), RestoreError> {
        let mut text = serde_json::to_vec(line).map_err(|error| failed(&self.partial, error.into()))?;
        text.push(b'\n');
        self.put(&text)
    }

    /// Adds a line as it is.
    pub(crate) fn put(&mut self, line: &[u8]) -> Result<(), RestoreError> {
        self.hasher.update(line);
        let partial = &self.partial;
        let out = self.out.as_mut().expect("the file is open until the plan is finished");
        out.write_all(line).map_err(|source| failed(partial, source))
    }

    /// Writes the last line and gives the file its name. What was there under that name is replaced.
    pub fn finish(mut self, counts: Counts, requests: u64, minutes: u64) -> Result<PlanEnd, RestoreError> {
        let digest = self.hasher.finalize().to_hex().to_string();
        let end = PlanEnd { ops: self.ops, counts, requests, minutes, digest };
        self.line(&PlanLine::End(end.clone()))?;
        let out = self.out.take().expect("the file is open until the plan is finished");
        out.into_inner()
            .map_err(std::io::IntoInnerError::into_error)
            .and_then(|file| file.sync_all())
            .and_then(|()| std::fs::rename(&self.partial, &self.path))
            .map_err(|source| failed(&self.path, source))?;
        Ok(end)
    }
}

impl Drop for PlanWriter {
    fn drop(&mut self) {
        // Renamed already, or left behind by a failure that is being reported.
        drop(std::fs::remove_file(&self.partial));
    }
}

/// The line of an operation, without a line break.
pub(crate) fn op_line(op: &Op) -> std::io::Result<Vec<u8>> {
    #[derive(serde::Serialize)]
    struct Line<'a> {
        op: &'a Op,
    }
    Ok(serde_json::to_vec(&Line { op })?)
}

fn private_file(path: &Path) -> std::io::Result<File> {
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create(true).truncate(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)
}

fn failed(path: &Path, source: std::io::Error) -> RestoreError {
    RestoreError::File { path: path.to_path_buf(), source }
}

/// A plan that was found to be whole.
#[derive(Debug)]
pub struct PlanFile {
    path: PathBuf,
    file: File,
    head: PlanHead,
    tables: Vec<TablePlan>,
    findings: Vec<Finding>,
    end: PlanEnd,
}

impl PlanFile {
    /// Opens a plan and checks all of it.
    pub fn open(path: &Path) -> Result<Self, RestoreError> {
        let refused = |reason: String| RestoreError::Plan { path: path.to_path_buf(), reason };
        let file = File::open(path).map_err(|error| refused(format!("it cannot be opened ({error})")))?;
        if !file.metadata().is_ok_and(|metadata| metadata.is_file()) {
            return Err(refused("it is not a file".into()));
        }
        let mut lines = Lines::new(path, file.try_clone().map_err(|source| failed(path, source))?);
        let Some(first) = lines.next_line()? else { return Err(refused("the file is empty".into())) };
        let head = head(first).map_err(refused)?;
        let mut check = Check::default();
        while let Some(line) = lines.next_line()? {
            if check.end.is_some() {
                return Err(refused("something follows its last line".into()));
            }
            check.line(line);
        }
        let Some(end) = check.end else {
            return Err(refused("it was cut: its last line is missing".into()));
        };
        if end.digest != lines.digest {
            return Err(refused("it was edited or damaged: its digest does not match".into()));
        }
        if let Some(reason) = check.problem {
            return Err(refused(reason));
        }
        if end.ops != check.ops {
            return Err(refused(format!("it says {} operations and has {}", end.ops, check.ops)));
        }
        Ok(Self { path: path.to_path_buf(), file, head, tables: check.tables, findings: check.findings, end })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The first line.
    pub fn head(&self) -> &PlanHead {
        &self.head
    }

    /// Tables.
    pub fn tables(&self) -> &[TablePlan] {
        &self.tables
    }

    /// Findings.
    pub fn findings(&self) -> &[Finding] {
        &self.findings
    }

    /// The last line.
    pub fn end(&self) -> &PlanEnd {
        &self.end
    }

    /// Refuses an environment other than the one the plan was made for.
    pub fn check_environment(&self, identity: &EnvironmentIdentity) -> Result<(), RestoreError> {
        let (planned, found) = (&self.head.identity.organization_id, &identity.organization_id);
        if planned.eq_ignore_ascii_case(found) {
            return Ok(());
        }
        let reason = format!("it was made for organization {planned}, and this environment is organization {found}");
        Err(RestoreError::Plan { path: self.path.clone(), reason })
    }

    /// Every line from the first. One iteration at a time: they share the place in the file.
    pub fn lines(&self) -> Result<impl Iterator<Item = Result<PlanLine, RestoreError>> + use<>, RestoreError> {
        let mut file = self.file.try_clone().map_err(|source| failed(&self.path, source))?;
        file.seek(SeekFrom::Start(0)).map_err(|source| failed(&self.path, source))?;
        let mut lines = Lines::new(&self.path, file);
        let path = self.path.clone();
        Ok(std::iter::from_fn(move || match lines.next_line() {
            Ok(None) => None,
            Err(error) => Some(Err(error)),
            Ok(Some(line)) => Some(serde_json::from_slice(line).map_err(|error| RestoreError::Plan {
                path: path.clone(),
                reason: format!("it changed while it was read ({})", class(&error)),
            })),
        }))
    }

    /// The operations in order. One iteration at a time: they share the place in the file.
    pub fn ops(&self) -> Result<impl Iterator<Item = Result<Op, RestoreError>> + use<>, RestoreError> {
        Ok(self.lines()?.filter_map(|line| match line {
            Ok(PlanLine::Op(op)) => Some(Ok(*op)),
            Ok(_) => None,
            Err(error) => Some(Err(error)),
        }))
    }
}

/// The head, once its format is known to be ours.
fn head(line: &[u8]) -> Result<PlanHead, String> {
    #[derive(Deserialize)]
    struct Peek {
        plan: Version,
    }
    #[derive(Deserialize)]
    struct Version {
        format: u32,
    }
    let Ok(Peek { plan: Version { format } }) = serde_json::from_slice::<Peek>(line) else {
        return Err("it is not a plan".into());
    };
    if format > FORMAT {
        return Err(format!("it has format {format}, made by a newer version; this version knows format {FORMAT}"));
    }
    if format < FORMAT {
        return Err(format!("it has format {format}, which is too old; this version knows format {FORMAT}"));
    }
    match serde_json::from_slice(line) {
        Ok(PlanLine::Head(head)) => Ok(*head),
        Ok(_) => Err("it is not a plan".into()),
        Err(error) => Err(format!("its first line is not understood ({})", class(&error))),
    }
}

/// What is wrong with a line, without what it holds: a plan has row values.
fn class(error: &serde_json::Error) -> String {
    let what = match error.classify() {
        serde_json::error::Category::Io => "reading failed",
        serde_json::error::Category::Syntax => "not JSON",
        serde_json::error::Category::Data => "an unknown or missing field",
        serde_json::error::Category::Eof => "it ends early",
    };
    format!("{what}, column {}", error.column())
}

/// What has been seen of a plan.
#[derive(Default)]
struct Check {
    tables: Vec<TablePlan>,
    findings: Vec<Finding>,
    end: Option<PlanEnd>,
    ops: u64,
    last: Option<(Step, u32)>,
    number: u64,
    problem: Option<String>,
}

impl Check {
    fn line(&mut self, line: &[u8]) {
        self.number += 1;
        let number = self.number + 1;
        if let Err(problem) = self.take(line, number) {
            self.problem.get_or_insert(problem);
        }
    }

    fn take(&mut self, line: &[u8], number: u64) -> Result<(), String> {
        let line = serde_json::from_slice(line)
            .map_err(|error| format!("line {number} is not understood ({})", class(&error)))?;
        match line {
            PlanLine::Head(_) => return Err(format!("line {number} is a second head")),
            PlanLine::Table(_) | PlanLine::Finding(_) | PlanLine::Conflict(_) if self.ops > 0 => {
                return Err(format!("line {number} stands after operations"));
            }
            PlanLine::Table(table) => self.tables.push(table),
            PlanLine::Finding(finding) => self.findings.push(finding),
            PlanLine::Conflict(_) => {}
            PlanLine::Op(op) => {
                if op.n != self.ops {
                    return Err(format!("operation {} stands where operation {} belongs", op.n, self.ops));
                }
                self.ops += 1;
                let place = (op.step, op.wave);
                if self.last.is_some_and(|last| place < last) {
                    return Err(format!("operation {} is out of order", op.n));
                }
                self.last = Some(place);
            }
            PlanLine::End(end) => self.end = Some(end),
        }
        if self.tables.len() > LISTED_MAX || self.findings.len() > LISTED_MAX {
            return Err(format!("it lists more than {LISTED_MAX} tables or findings"));
        }
        Ok(())
    }
}

/// Lines with a limit, and the digest of all before the last.
struct Lines {
    path: PathBuf,
    reader: BufReader<File>,
    hasher: blake3::Hasher,
    digest: String,
    line: Vec<u8>,
}

impl Lines {
    fn new(path: &Path, file: File) -> Self {
        let reader = BufReader::with_capacity(BUFFER_BYTES, file);
        Self {
            path: path.to_path_buf(),
            reader,
            hasher: blake3::Hasher::new(),
            digest: String::new(),
            line: Vec::new(),
        }
    }

    fn next_line(&mut self) -> Result<Option<&[u8]>, RestoreError> {
        self.line.clear();
        // One huge line must not be paid for ever.
        self.line.shrink_to(BUFFER_BYTES);
        let mut limited = std::io::Read::take(&mut self.reader, LINE_BYTES_MAX as u64 + 1);
        limited.read_until(b'\n', &mut self.line).map_err(|source| failed(&self.path, source))?;
        if self.line.is_empty() {
            return Ok(None);
        }
        let refused = |reason: String| RestoreError::Plan { path: self.path.clone(), reason };
        if self.line.last() != Some(&b'\n') {
            let long = self.line.len() > LINE_BYTES_MAX;
            let cut = "it was cut: its last line has no end".to_string();
            return Err(refused(if long { format!("a line is longer than {LINE_BYTES_MAX} bytes") } else { cut }));
        }
        if self.line.starts_with(END) {
            self.digest = self.hasher.finalize().to_hex().to_string();
        }
        self.hasher.update(&self.line);
        Ok(Some(&self.line[..self.line.len() - 1]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{Action, ConflictPolicy, PlanKind};
    use dynavault_model::{Guard, RowKey, WriteKind, WriteOptions};
    use serde_json::value::RawValue;

    fn identity(organization: &str) -> EnvironmentIdentity {
        EnvironmentIdentity {
            organization_id: organization.into(),
            environment_id: None,
            tenant_id: None,
            friendly_name: None,
            version: None,
            base_currency_id: None,
            change_tracking_days: None,
            user_id: "00000000-0000-0000-0000-000000000001".into(),
        }
    }

    fn plan_head() -> PlanHead {
        PlanHead {
            format: FORMAT,
            kind: PlanKind::Restore,
            tool: "test".into(),
            created: jiff::Timestamp::UNIX_EPOCH,
            source: "prod".into(),
            snapshot: "01ARZ3NDEKTSV4RRFFQ69G5FAV".parse().unwrap(),
            undoes: None,
            target: "prod".into(),
            identity: identity("aaaaaaaa-0000-0000-0000-000000000000"),
            selection: vec!["--table account".into()],
            conflict: ConflictPolicy::FillEmpty,
            mirror: false,
            options: WriteOptions::default(),
        }
    }

    fn op(step: Step, wave: u32) -> Op {
        Op {
            n: 77,
            step,
            wave,
            table: "account".into(),
            action: Action::Write(WriteKind::Create),
            key: RowKey::new("0fe1c2d3-a4b5-46c7-88d9-eafb0c1d2e3f"),
            set: Some(RawValue::from_string(r#"{"name":"A","revenue":20000.0000}"#.into()).unwrap()),
            from: None,
            guard: Guard::Absent,
            parties: Vec::new(),
            from_parties: Vec::new(),
            along: Vec::new(),
            close: None,
            content: None,
            on_behalf: None,
            modified: None,
            follows: false,
        }
    }

    fn written(folder: &Path, ops: &[(Step, u32)]) -> PathBuf {
        let path = folder.join("plan.jsonl");
        let mut writer = PlanWriter::create(&path, &plan_head()).unwrap();
        writer.table(&TablePlan { table: "account".into(), ..TablePlan::default() }).unwrap();
        for (step, wave) in ops {
            writer.op(&mut op(*step, *wave)).unwrap();
        }
        writer.finish(Counts::default(), 1, 1).unwrap();
        path
    }

    fn reason(path: &Path) -> String {
        PlanFile::open(path).unwrap_err().to_string()
    }

    /// Writes `lines` with a digest that fits, as somebody would who knows the format.
    fn forged(path: &Path, lines: &[String]) {
        let body = lines.join("\n") + "\n";
        let end = PlanEnd {
            ops: lines.iter().filter(|line| line.starts_with("{\"op\"")).count() as u64,
            counts: Counts::default(),
            requests: 0,
            minutes: 0,
            digest: blake3::hash(body.as_bytes()).to_hex().to_string(),
        };
        let end = serde_json::to_string(&PlanLine::End(end)).unwrap();
        std::fs::write(path, format!("{body}{end}\n")).unwrap();
    }

    #[test]
    fn a_plan_is_read_as_it_was_written_and_its_operations_are_numbered() {
        let folder = tempfile::tempdir().unwrap();
        let path = written(folder.path(), &[(Step::Rows, 0), (Step::Rows, 1), (Step::State, 0)]);
        let plan = PlanFile::open(&path).unwrap();
        assert_eq!((plan.head(), plan.tables().len(), plan.end().ops), (&plan_head(), 1, 3));
        for _ in 0..2 {
            let ops: Vec<Op> = plan.ops().unwrap().collect::<Result<_, _>>().unwrap();
            assert_eq!(ops.iter().map(|op| op.n).collect::<Vec<_>>(), [0, 1, 2]);
            assert_eq!(ops[0].set.as_ref().unwrap().get(), r#"{"name":"A","revenue":20000.0000}"#);
        }
        #[cfg(unix)]
        assert_eq!(std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(&path).unwrap()) & 0o777, 0o600);
    }

    #[test]
    fn an_unfinished_plan_leaves_no_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("plan.jsonl");
        drop(PlanWriter::create(&path, &plan_head()).unwrap());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn every_cut_of_a_plan_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = written(folder.path(), &[(Step::Rows, 0), (Step::Lookups, 0)]);
        let whole = std::fs::read(&path).unwrap();
        for length in 0..whole.len() {
            std::fs::write(&path, &whole[..length]).unwrap();
            assert!(PlanFile::open(&path).is_err(), "{length} bytes of {} were accepted", whole.len());
        }
        std::fs::write(&path, [&whole[..], b"{}\n"].concat()).unwrap();
        assert!(reason(&path).contains("follows its last line"));
    }

    #[test]
    fn every_changed_byte_of_a_plan_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = written(folder.path(), &[(Step::Rows, 0)]);
        let whole = std::fs::read(&path).unwrap();
        let end = whole.windows(END.len()).position(|window| window == END).unwrap();
        for at in 0..end {
            let mut edited = whole.clone();
            edited[at] = if edited[at] == b'x' { b'y' } else { b'x' };
            std::fs::write(&path, &edited).unwrap();
            assert!(PlanFile::open(&path).is_err(), "an edit of byte {at} was accepted");
        }
        let text = String::from_utf8(whole).unwrap().replace("\"name\":\"A\"", "\"name\":\"B\"");
        std::fs::write(&path, text).unwrap();
        assert!(reason(&path).contains("edited or damaged"));
    }

    #[test]
    fn other_formats_gaps_disorder_and_unknown_words_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = written(folder.path(), &[(Step::Rows, 1), (Step::Rows, 1)]);
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<String> = text.lines().map(str::to_owned).take(4).collect();
        let with = |at: usize, from: &str, to: &str| {
            let mut lines = lines.clone();
            assert!(lines[at].contains(from), "{}", lines[at]);
            lines[at] = lines[at].replace(from, to);
            forged(&path, &lines);
            reason(&path)
        };
        assert!(with(0, "\"format\":1", "\"format\":2").contains("newer version"));
        assert!(with(0, "\"format\":1", "\"format\":0").contains("too old"));
        assert!(with(0, "\"plan\"", "\"plot\"").contains("not a plan"));
        assert!(with(3, "\"n\":1", "\"n\":2").contains("operation 2 stands where operation 1 belongs"));
        assert!(with(3, "\"wave\":1", "\"wave\":0").contains("out of order"));
        assert!(with(3, "\"do\":\"create\"", "\"do\":\"explode\"").contains("line 4 is not understood"));
        assert!(with(3, "\"guard\"", "\"secret\":1,\"guard\"").contains("an unknown or missing field"));
        assert!(with(1, "{\"table\"", "{\"tableau\"").contains("line 2"));
        let mut swapped = lines.clone();
        swapped.swap(1, 3);
        swapped.swap(1, 2);
        forged(&path, &swapped);
        assert!(reason(&path).contains("stands") || reason(&path).contains("belongs"));
        forged(&path, &lines);
        assert_eq!(PlanFile::open(&path).unwrap().end().ops, 2);
    }

    #[test]
    fn a_plan_for_another_organization_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let plan = PlanFile::open(&written(folder.path(), &[])).unwrap();
        plan.check_environment(&identity("AAAAAAAA-0000-0000-0000-000000000000")).unwrap();
        let error = plan.check_environment(&identity("bbbbbbbb-0000-0000-0000-000000000000")).unwrap_err();
        assert!(error.to_string().contains("organization bbbbbbbb"));
    }
}
