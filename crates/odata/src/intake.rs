//! The far end of a reply body: a blocking thread that decompresses and hands on, fed by the reactor in chunks.
//!
//! ```text
//!  socket ─ reactor ─▶ [ up to 8 chunks ] ─▶ blocking thread: inflate ─▶ Intake ─▶ sink
//! ```
//!
//! The reactor says explicitly when the body ended. A channel that closes without that word means that the body was cut
//! or the request given up, and nothing is finished then.

use std::io::{self, BufRead, Read};
use std::sync::{Arc, PoisonError};

use bytes::{Buf, Bytes};
use dynavault_model::{PageEnd, SharedContentSink, SharedSink, Stopped};
use flate2::bufread::MultiGzDecoder;
use tokio::sync::mpsc;

use crate::fault::ErrorBody;
use crate::page::{PageFault, PageSplitter};

/// Chunks between reactor and blocking thread. A few are enough to keep both busy; each is at most some 100 KiB.
pub(crate) const CHUNKS_MAX: usize = 8;
/// Places for chunks that the reactor takes at a time.
pub(crate) const CHUNKS_AT_A_TIME: usize = 4;

/// Bytes inflated at a time.
const INFLATE_BYTES: usize = 64 * 1024;

/// What the reactor sends.
#[derive(Debug)]
pub(crate) enum Piece {
    Bytes(Bytes),
    /// The body ended as it should.
    End,
}

/// Why a body could not be taken in.
#[derive(Debug)]
pub(crate) enum IntakeFault {
    /// The sink does not take more.
    Stopped,
    /// The reactor gave up; it knows why.
    Abandoned,
    /// The body ended early although the transport did not notice.
    Cut(String),
    /// The body is whole and makes no sense.
    Malformed(String),
    /// The body is larger than the caller accepts.
    TooLarge(usize),
    /// The service reported an error inside a body it had begun with success.
    Service(ErrorBody),
}

impl From<Stopped> for IntakeFault {
    fn from(_: Stopped) -> Self {
        Self::Stopped
    }
}

impl From<PageFault> for IntakeFault {
    fn from(fault: PageFault) -> Self {
        match fault {
            PageFault::Stopped => Self::Stopped,
            PageFault::Truncated { .. } => Self::Cut(fault.to_string()),
            PageFault::Service(error) => Self::Service(error),
            PageFault::Malformed { .. } | PageFault::MemberTooLarge => Self::Malformed(fault.to_string()),
        }
    }
}

/// What an intake is told about the body it is made for.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Facts {
    /// An earlier try had begun to fill the sink; the sink is to be told that the body starts over.
    pub(crate) again: bool,
    /// The answer says that the body is JSON.
    pub(crate) json: bool,
    /// Bytes of the whole file, where the answer says so and gives all of it.
    pub(crate) size: Option<u64>,
}

/// Takes a decompressed body, on a blocking thread.
pub(crate) trait Intake: Send + 'static {
    type Output: Send + 'static;

    /// The next bytes.
    fn take(&mut self, bytes: &[u8]) -> Result<(), IntakeFault>;

    /// The body is complete.
    fn finish(self) -> Result<Self::Output, IntakeFault>;
}

/// Runs on the blocking thread until the body ends.
pub(crate) fn take_in<I: Intake>(
    pieces: mpsc::Receiver<Piece>,
    gzip: bool,
    size: Option<u64>,
    mut intake: I,
) -> Result<I::Output, IntakeFault> {
    let mut body = Pieces { receiver: pieces, current: Bytes::new(), ended: false };
    let mut taken = 0_u64;
    if gzip && !body.next()?.is_empty() {
        let mut decoder = MultiGzDecoder::new(body);
        let mut buffer = vec![0; INFLATE_BYTES];
        loop {
            match decoder.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => {
                    taken += count as u64;
                    intake.take(&buffer[..count])?;
                }
                Err(fault) if fault.kind() == io::ErrorKind::Interrupted => {}
                Err(fault) if fault.kind() == ABANDONED => return Err(IntakeFault::Abandoned),
                Err(fault) if fault.kind() == io::ErrorKind::UnexpectedEof => {
                    return Err(IntakeFault::Cut("the compressed body ends early".into()));
                }
                Err(fault) => return Err(IntakeFault::Malformed(format!("the body cannot be decompressed: {fault}"))),
            }
        }
    } else {
        loop {
            let bytes = body.next()?;
            let length = bytes.len();
            if length == 0 {
                break;
            }
            taken += length as u64;
            intake.take(bytes)?;
            body.consume(length);
        }
    }
    if let Some(size) = size.filter(|size| *size != taken) {
        return Err(IntakeFault::Cut(format!("{taken} bytes came of a file of {size}")));
    }
    intake.finish()
}

/// How [`Pieces`] tells through a reader that the reactor gave up.
const ABANDONED: io::ErrorKind = io::ErrorKind::ConnectionAborted;

/// The chunks as one reader.
struct Pieces {
    receiver: mpsc::Receiver<Piece>,
    current: Bytes,
    ended: bool,
}

impl Pieces {
    /// Bytes at hand, waiting for them if there are none; empty at the end of the body.
    fn next(&mut self) -> Result<&[u8], IntakeFault> {
        while self.current.is_empty() && !self.ended {
            match self.receiver.blocking_recv() {
                Some(Piece::Bytes(bytes)) => self.current = bytes,
                Some(Piece::End) => self.ended = true,
                None => return Err(IntakeFault::Abandoned),
            }
        }
        Ok(&self.current)
    }
}

impl BufRead for Pieces {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.next().map_err(|_| io::Error::from(ABANDONED))
    }

    fn consume(&mut self, count: usize) {
        self.current.advance(count);
    }
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let bytes = self.fill_buf()?;
        let count = bytes.len().min(buffer.len());
        buffer[..count].copy_from_slice(&bytes[..count]);
        self.consume(count);
        Ok(count)
    }
}

/// Splits a page into rows for a sink, which is locked while it is given rows and not while the network is waited for.
pub(crate) struct PageIntake {
    splitter: PageSplitter,
    sink: SharedSink,
}

impl PageIntake {
    pub(crate) fn new(sink: SharedSink, facts: Facts) -> Self {
        let row_bytes_max = {
            // A sink that panicked under its lock has its own way of saying so; we only deliver.
            let mut sink = sink.lock().unwrap_or_else(PoisonError::into_inner);
            if facts.again {
                sink.restarted();
            }
            sink.row_bytes_max()
        };
        Self { splitter: PageSplitter::new(row_bytes_max), sink }
    }
}

impl Intake for PageIntake {
    type Output = PageEnd;

    fn take(&mut self, bytes: &[u8]) -> Result<(), IntakeFault> {
        let mut sink = self.sink.lock().map_err(|_| IntakeFault::Stopped)?;
        Ok(self.splitter.feed(bytes, &mut *sink)?)
    }

    fn finish(self) -> Result<PageEnd, IntakeFault> {
        Ok(self.splitter.finish()?)
    }
}

/// Hands bytes to a content sink.
pub(crate) struct ContentIntake(SharedContentSink);

impl ContentIntake {
    pub(crate) fn new(sink: SharedContentSink, facts: Facts) -> Self {
        if facts.again {
            sink.lock().unwrap_or_else(PoisonError::into_inner).restarted();
        }
        Self(sink)
    }
}

impl Intake for ContentIntake {
    type Output = ();

    fn take(&mut self, bytes: &[u8]) -> Result<(), IntakeFault> {
        Ok(self.0.lock().map_err(|_| IntakeFault::Stopped)?.write(bytes)?)
    }

    fn finish(self) -> Result<(), IntakeFault> {
        Ok(())
    }
}

/// What [`BufferIntake`] does at its limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AtLimit {
    /// Fails: the caller needs all of it.
    Fail,
    /// Ignores the rest: the start is enough.
    Ignore,
}

/// Keeps a body in memory, up to a limit.
pub(crate) struct BufferIntake {
    bytes: Vec<u8>,
    bytes_max: usize,
    at_limit: AtLimit,
    /// The body says it is JSON: a body that is not is as good as cut.
    json: bool,
}

impl BufferIntake {
    pub(crate) fn new(bytes_max: usize, at_limit: AtLimit, facts: Facts) -> Self {
        Self { bytes: Vec::new(), bytes_max, at_limit, json: facts.json }
    }
}

impl Intake for BufferIntake {
    type Output = Bytes;

    fn take(&mut self, bytes: &[u8]) -> Result<(), IntakeFault> {
        let room = self.bytes_max - self.bytes.len();
        if bytes.len() > room && self.at_limit == AtLimit::Fail {
            return Err(IntakeFault::TooLarge(self.bytes_max));
        }
        self.bytes.extend_from_slice(&bytes[..bytes.len().min(room)]);
        Ok(())
    }

    fn finish(self) -> Result<Bytes, IntakeFault> {
        if self.json
            && !self.bytes.is_empty()
            && let Err(fault) = serde_json::from_slice::<serde::de::IgnoredAny>(&self.bytes)
        {
            let text = format!("the body is not JSON at byte {}", fault.column());
            return Err(if fault.is_eof() { IntakeFault::Cut(text) } else { IntakeFault::Malformed(text) });
        }
        Ok(Bytes::from(self.bytes))
    }
}

/// Makes a fresh intake for each try of a request, on the blocking thread.
pub(crate) type Maker<I> = Arc<dyn Fn(Facts) -> I + Send + Sync>;
