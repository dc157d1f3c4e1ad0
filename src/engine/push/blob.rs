//! A blob's bytes on their way: counted, and verified before the last of them leaves.

use std::io::{self, Read};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::oci::{Descriptor, Hasher};
use crate::{Context, Error, Kind, Result};

/// Why a source couldn't give what it was to give: not the fault of whom it was sent to.
#[derive(Debug, Clone, Default)]
pub(super) struct Fault(Arc<Mutex<Option<Error>>>);

impl Fault {
    pub(super) fn take(&self) -> Option<Error> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    pub(super) fn note(&self, error: Error) -> Error {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(error.clone());
        error
    }
}

/// Gives all bytes of a blob, or an error: what has another digest lacks its end wherever it arrives.
pub(super) struct Checked {
    raw: Box<dyn Read + Send>,
    expected: Descriptor,
    hasher: Option<Hasher>,
    left: u64,
    sent: Arc<AtomicU64>,
    fault: Fault,
}

impl Checked {
    pub(super) fn new(
        raw: Box<dyn Read + Send>,
        expected: &Descriptor,
        sent: &Arc<AtomicU64>,
        fault: &Fault,
    ) -> Self {
        sent.store(0, Ordering::Relaxed);
        let (sent, fault) = (Arc::clone(sent), fault.clone());
        Self { raw, expected: expected.clone(), hasher: Some(Hasher::new()), left: expected.size, sent, fault }
    }

    fn next(&mut self, into: &mut [u8]) -> Result<usize> {
        let most = into.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let n = loop {
            match self.raw.read(&mut into[..most]) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                read => break read.context(|| "read")?,
            }
        };
        let bad = |why: String| Error::new(Kind::BadInput, format!("blob {} {why}", self.expected.digest));
        if n == 0 && self.left > 0 {
            return Err(bad(format!("ends {} bytes early", self.left)));
        }
        self.left -= n as u64;
        if let Some(hasher) = &mut self.hasher {
            hasher.update(&into[..n]);
        }
        if self.left == 0
            && let Some(hasher) = self.hasher.take()
        {
            let digest = hasher.finish();
            if digest != self.expected.digest {
                return Err(bad(format!("has the digest {digest}")));
            }
        }
        self.sent.fetch_add(n as u64, Ordering::Relaxed);
        Ok(n)
    }
}

impl Read for Checked {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if into.is_empty() || (self.left == 0 && self.hasher.is_none()) {
            return Ok(0);
        }
        self.next(into).map_err(|e| io::Error::other(self.fault.note(e)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Digest;

    fn read(bytes: &'static [u8], expected: &Descriptor) -> (Result<Vec<u8>>, Option<String>, u64) {
        let (sent, fault) = (Arc::default(), Fault::default());
        let mut got = Vec::new();
        let done = Checked::new(Box::new(bytes), expected, &sent, &fault).read_to_end(&mut got);
        (done.map(|_| got).context(|| "send"), fault.take().map(|e| e.to_string()), sent.load(Ordering::Relaxed))
    }

    #[test]
    fn only_what_has_its_digest_arrives_whole() {
        let expected = Descriptor::new("", Digest::of(b"layer"), 5);
        let (got, fault, sent) = read(b"layer", &expected);
        assert_eq!((got.expect("whole"), fault, sent), (b"layer".to_vec(), None, 5));
        for (bytes, why) in [(&b"lay"[..], "ends 2 bytes early"), (b"later", "has the digest"), (b"", "ends 5 bytes")]
        {
            let (got, fault, sent) = read(bytes, &expected);
            let error = got.expect_err("bad").to_string();
            assert!(error.contains(why) && fault.is_some_and(|fault| fault.contains(why)), "{error}");
            assert!(sent < 5);
        }
        let empty = Descriptor::new("", Digest::of(b""), 0);
        assert_eq!(read(b"", &empty).0.expect("whole"), b"");
    }
}
