//! The place on this machine to which the browser returns (`entra` protocol, section 4.3; RFC 8252, section 7.3).
//!
//! Exactly one request ends the wait: a `GET /` with the right `state` and either a code or an error. Everything else is
//! answered with 404 and changes nothing, whoever sends it. Browsers resolve `localhost` to either address, so both are
//! listened on. The pages are fixed texts: nothing of a request is repeated.

use std::future::pending;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use dynavault_model::Clock;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use url::form_urlencoded;
use zeroize::Zeroizing;

use crate::endpoint::same_secret;

/// Longest head of a request, in bytes; a code has up to 2 KiB.
const HEAD_BYTES_MAX: usize = 16 * 1024;
/// Time for a head to come, and for an answer to go.
const EXCHANGE_TIME_MAX: Duration = Duration::from_secs(10);
/// Connections at a time; browsers open some in advance and leave them idle.
const CONNECTIONS_MAX: usize = 16;
/// Ports tried until one is free on both addresses.
const BIND_TRIES_MAX: u32 = 8;

const PAGE_DONE: &str =
    "<!doctype html><title>dynavault</title><p>Done. You can close this page and return to dynavault.</p>";
const PAGE_REFUSED: &str =
    "<!doctype html><title>dynavault</title><p>The sign-in was not completed. dynavault shows the reason.</p>";

/// Listens on both loopback addresses with one port.
pub(super) struct Loopback {
    four: TcpListener,
    /// Missing on a machine without IPv6.
    six: Option<TcpListener>,
    port: u16,
}

/// What the browser brought.
pub(super) enum Redirect {
    Code(Zeroizing<String>),
    Error { error: String, description: String },
}

/// Why nothing came.
pub(super) enum WaitEnd {
    TimedOut,
    Cancelled,
    Broken(io::Error),
}

impl Loopback {
    pub(super) async fn bind() -> io::Result<Self> {
        let mut tries = 0;
        loop {
            tries += 1;
            let four = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
            let port = four.local_addr()?.port();
            let six = match TcpListener::bind((Ipv6Addr::LOCALHOST, port)).await {
                Ok(six) => Some(six),
                // Somebody else would get what is meant for us.
                Err(error) if error.kind() == io::ErrorKind::AddrInUse && tries < BIND_TRIES_MAX => continue,
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => return Err(error),
                Err(_) => None,
            };
            return Ok(Self { four, six, port });
        }
    }

    pub(super) fn port(&self) -> u16 {
        self.port
    }

    /// Waits for the redirect that carries `state`. The listeners are closed when this returns or is dropped.
    pub(super) async fn wait(
        self,
        state: &str,
        clock: &dyn Clock,
        time_max: Duration,
        cancel: &CancellationToken,
    ) -> Result<Redirect, WaitEnd> {
        let deadline = clock.sleep(time_max);
        tokio::pin!(deadline);
        // Heads are read side by side, so that an idle connection does not hold up the real one; answers are decided
        // one after the other, so that only one of them can be the right one.
        let mut heads: JoinSet<Option<(TcpStream, Zeroizing<String>)>> = JoinSet::new();
        loop {
            let room = heads.len() < CONNECTIONS_MAX;
            let accepted = tokio::select! {
                biased;
                () = cancel.cancelled() => return Err(WaitEnd::Cancelled),
                () = &mut deadline => return Err(WaitEnd::TimedOut),
                Some(head) = heads.join_next() => {
                    let Ok(Some((stream, target))) = head else { continue };
                    let redirect = read_redirect(&target, state);
                    let (status, page) = match &redirect {
                        Some(Redirect::Code(_)) => ("200 OK", PAGE_DONE),
                        Some(Redirect::Error { .. }) => ("200 OK", PAGE_REFUSED),
                        None => ("404 Not Found", ""),
                    };
                    answer(stream, status, page).await;
                    match redirect {
                        Some(redirect) => return Ok(redirect),
                        None => continue,
                    }
                }
                accepted = self.four.accept(), if room => accepted,
                accepted = accept(self.six.as_ref()), if room => accepted,
            };
            match accepted {
                Ok((stream, _)) => {
                    heads.spawn(read_head(stream));
                }
                // The other side gave up before we came.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => return Err(WaitEnd::Broken(error)),
            }
        }
    }
}

async fn accept(listener: Option<&TcpListener>) -> io::Result<(TcpStream, std::net::SocketAddr)> {
    match listener {
        Some(listener) => listener.accept().await,
        None => pending().await,
    }
}

/// Reads a head and gives the target of a `GET`, empty for any other request.
async fn read_head(mut stream: TcpStream) -> Option<(TcpStream, Zeroizing<String>)> {
    let mut head = Zeroizing::new(Vec::with_capacity(HEAD_BYTES_MAX));
    let reading = async {
        while !head.windows(4).any(|end| end == b"\r\n\r\n") {
            if head.len() >= HEAD_BYTES_MAX || stream.read_buf(&mut *head).await.ok()? == 0 {
                return None;
            }
        }
        Some(())
    };
    tokio::time::timeout(EXCHANGE_TIME_MAX, reading).await.ok()??;
    let line = head.split(|byte| *byte == b'\r').next().and_then(|line| std::str::from_utf8(line).ok());
    let mut words = line.unwrap_or_default().split(' ');
    let target = match (words.next(), words.next(), words.next()) {
        (Some("GET"), Some(target), Some(_)) => target.to_owned(),
        _ => String::new(),
    };
    Some((stream, Zeroizing::new(target)))
}

/// What a target means, if it is for us: the root, the right `state`, and each parameter once.
fn read_redirect(target: &str, state: &str) -> Option<Redirect> {
    let query = target.strip_prefix("/?")?;
    let one = |name: &str| {
        let mut values = form_urlencoded::parse(query.as_bytes()).filter(|(known, _)| known == name);
        let value = values.next().map(|(_, value)| Zeroizing::new(value.into_owned()));
        value.filter(|_| values.next().is_none())
    };
    // Before anything else is looked at.
    if !same_secret(&one("state")?, state) {
        return None;
    }
    if let Some(error) = one("error") {
        let description = one("error_description").map(|text| text.to_string()).unwrap_or_default();
        return Some(Redirect::Error { error: error.to_string(), description });
    }
    one("code").filter(|code| !code.is_empty()).map(Redirect::Code)
}

async fn answer(mut stream: TcpStream, status: &str, page: &str) {
    let reply = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/html; charset=utf-8\r\nContent-Length: {}\r\nCache-Control: no-store\r\n\
         Content-Security-Policy: default-src 'none'\r\nReferrer-Policy: no-referrer\r\nX-Content-Type-Options: nosniff\r\n\
         Connection: close\r\n\r\n{page}",
        page.len()
    );
    let sending = async {
        stream.write_all(reply.as_bytes()).await?;
        stream.shutdown().await
    };
    // A browser that does not read its page changes nothing.
    let _unread = tokio::time::timeout(EXCHANGE_TIME_MAX, sending).await;
}
