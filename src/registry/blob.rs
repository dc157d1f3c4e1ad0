//! A blob's bytes, going on from where a connection broke.

use std::io::{self, Read};
use std::sync::Arc;

use super::http::ATTEMPTS;
use super::repository::Shared;
use crate::{Context, Error, Kind, Result};

/// So many bytes on, what broke before is forgiven.
const PROGRESS: u64 = 1 << 20;

/// Ends where the descriptor says. Its digest is for the reader to verify.
pub(super) struct Blob {
    repository: Arc<Shared>,
    /// Below the repository: `blobs/sha256:...`.
    what: String,
    size: u64,
    at: u64,
    body: Option<Box<dyn Read + Send>>,
    /// Connections that broke without much progress, and where they did.
    broken: u32,
    broken_at: u64,
}

impl Blob {
    /// # Errors
    /// If the registry doesn't have it, or says that it has another length.
    pub(super) fn open(repository: &Arc<Shared>, what: String, size: u64) -> Result<Self> {
        let repository = Arc::clone(repository);
        let mut blob = Self { repository, what, size, at: 0, body: None, broken: 0, broken_at: 0 };
        blob.connect()?;
        Ok(blob)
    }

    fn bad(&self, why: String) -> Error {
        Error::new(Kind::BadInput, format!("{}: {} {why}", self.repository.who(), self.what))
    }

    /// Ask for what is missing.
    fn connect(&mut self) -> Result<()> {
        let answer = self.repository.get(&self.what, "*/*", self.at)?;
        let left = self.size - self.at;
        let whole = answer.status() == 200;
        if let Some(length) = answer.length().filter(|length| *length != if whole { self.size } else { left }) {
            return Err(self.bad(format!(
                "has {length} bytes there from byte {}, its descriptor says {}",
                if whole { 0 } else { self.at },
                self.size
            )));
        }
        if !whole && !answer.header("content-range").starts_with(&format!("bytes {}-", self.at)) {
            return Err(self.bad(format!("was asked for from byte {} on, and something else came", self.at)));
        }
        let mut body = answer.into_body();
        // A server that knows no ranges begins anew.
        if whole && self.at > 0 {
            let skipped = io::copy(&mut body.by_ref().take(self.at), &mut io::sink());
            if skipped.context(|| "read")? < self.at {
                return Err(self.bad("ends earlier than before".into()));
            }
        }
        self.body = Some(body);
        Ok(())
    }

    /// After a break: wait, or give up.
    fn recover(&mut self, why: &str) -> Result<()> {
        self.body = None;
        if self.at >= self.broken_at + PROGRESS {
            self.broken = 0;
        }
        self.broken_at = self.at;
        self.broken += 1;
        if self.broken == ATTEMPTS {
            let why = format!("broke off {ATTEMPTS} times, last after {} of {} bytes: {why}", self.at, self.size);
            return Err(Error::new(Kind::System, format!("{}: {} {why}", self.repository.who(), self.what)));
        }
        tracing::debug!("{} broke off at byte {} of {}: {why}", self.what, self.at, self.size);
        self.repository.pause(self.broken - 1)
    }
}

impl Read for Blob {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        loop {
            self.repository.check().map_err(io::Error::other)?;
            let Some(body) = &mut self.body else {
                self.connect().map_err(io::Error::other)?;
                continue;
            };
            let why = match body.read(into) {
                Ok(0) if self.at == self.size || into.is_empty() => return Ok(0),
                Ok(0) => "the body ended".to_string(),
                Ok(n) if n as u64 > self.size - self.at => {
                    self.body = None;
                    let why = format!("goes on behind the {} bytes that its descriptor says", self.size);
                    return Err(io::Error::other(self.bad(why)));
                }
                Ok(n) => {
                    self.at += n as u64;
                    return Ok(n);
                }
                Err(e) => self.repository.why(&e),
            };
            self.repository.check().map_err(io::Error::other)?;
            self.recover(&why).map_err(io::Error::other)?;
        }
    }
}
