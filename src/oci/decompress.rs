//! Telling a compression from the bytes, and undoing it, one pass, bounded memory.
//!
//! Media types and file names only claim; the magic number decides, as in Docker. gzip may have
//! several members (pigz, estargz) and zero padding after the last one. zstd may have several frames,
//! skippable ones among them; a window beyond 128 MiB is refused, because the decoder has to hold it.
//! Anything else behind either is an error: a member whose first bytes are damaged looks the same. Who knows
//! what the plain bytes are to be can tell the two apart, and go on ([`Compression::is_trailing`]).

use std::io::{self, BufRead, Read};

use crate::{Error, Kind, Result};

/// log2 of the largest zstd window in bytes that is accepted: what `zstd --ultra -22` makes.
pub(super) const ZSTD_WINDOW_LOG_MAX: u32 = 27;
/// Bytes that are enough to tell every form apart.
pub(super) const MAGIC_LEN: usize = 10;

/// How bytes are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    Plain,
    Gzip,
    Zstd,
}

impl Compression {
    /// Tell by the first bytes, [`MAGIC_LEN`] of them unless there are fewer.
    ///
    /// # Errors
    /// [`Kind::Unsupported`] for compressions that we know but don't undo.
    pub(super) fn detect(head: &[u8]) -> Result<Self> {
        // RFC 1952; RFC 8878 (the second is a skippable frame, with which pzstd begins).
        if head.starts_with(&[0x1f, 0x8b]) {
            return Ok(Self::Gzip);
        }
        if matches!(head, [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..]) {
            return Ok(Self::Zstd);
        }
        let other = match head {
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => "xz",
            [b'B', b'Z', b'h', b'1'..=b'9', 0x31, 0x41, 0x59, 0x26, 0x53, 0x59, ..] => "bzip2",
            [0x04, 0x22, 0x4d, 0x18, ..] => "lz4",
            [b'P', b'K', 3, 4, ..] => "zip",
            _ => return Ok(Self::Plain),
        };
        Err(Error::new(Kind::Unsupported, format!("it is compressed with {other}; supported are gzip and zstd"))
            .with_hint(format!("decompress it first, or compress it with zstd in place of {other}")))
    }

    /// The plain bytes of `compressed`.
    ///
    /// # Errors
    /// [`Kind::NoSpace`] and the like if zstd can't be set up.
    pub(super) fn decoder<'a, R: BufRead + 'a>(self, compressed: R) -> Result<Box<dyn Read + 'a>> {
        Ok(match self {
            Self::Plain => Box::new(compressed),
            Self::Gzip => Box::new(Gzip::member(compressed)),
            Self::Zstd => {
                let mut decoder = zstd::stream::read::Decoder::with_buffer(compressed)
                    .map_err(|e| Error::system("set up zstd", &e))?;
                decoder.window_log_max(ZSTD_WINDOW_LOG_MAX).map_err(|e| Error::system("set up zstd", &e))?;
                Box::new(decoder)
            }
        })
    }

    /// Whether an error of [`Compression::decoder`]'s reader only means that something else stands behind the last
    /// member or frame. Reading on then gives the end, or the same error again.
    pub(super) fn is_trailing(self, error: &io::Error) -> bool {
        match self {
            Self::Plain => false,
            Self::Gzip => matches!(error.get_ref(), Some(inner) if inner.is::<Trailing>()),
            // ZSTD_error_prefix_unknown, by zstd_errors.h's text: met where a frame should start, and nowhere else.
            Self::Zstd => error.to_string().contains("Unknown frame descriptor"),
        }
    }

    /// What an error of [`Compression::decoder`]'s reader means, in words for the user.
    pub(super) fn explain(self, error: &io::Error) -> Error {
        let name = match self {
            Self::Plain => return Error::system("read", error),
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
        };
        let text = error.to_string();
        let why = if error.raw_os_error().is_some() {
            return Error::system("read", error);
        } else if error.kind() == io::ErrorKind::UnexpectedEof {
            format!("its {name} data is truncated")
        } else if text.contains("too much memory") {
            // ZSTD_error_frameParameter_windowTooLarge, by zstd_errors.h's text.
            format!("its zstd window is larger than {} MiB", (1_u32 << ZSTD_WINDOW_LOG_MAX) >> 20)
        } else {
            format!("its {name} data is corrupt: {text}")
        };
        Error::new(Kind::BadInput, why)
    }
}

/// The plain bytes of a stream, whatever it is compressed by.
///
/// # Errors
/// `Unsupported` for compressions that we know but don't undo.
pub fn plain<'a>(stream: impl Read + 'a) -> Result<Box<dyn Read + 'a>> {
    let mut stream = io::BufReader::new(stream);
    let head = stream.fill_buf().map_err(|e| Error::system("read", &e))?;
    Compression::detect(&head[..head.len().min(MAGIC_LEN)])?.decoder(stream)
}

/// gzip, member after member.
///
/// flate2's own reader of several members takes zero padding for a damaged header.
enum Gzip<R> {
    Member(Box<flate2::bufread::GzDecoder<R>>),
    /// Where only zeros may follow.
    Padding(R),
    Done,
}

impl<R: BufRead> Gzip<R> {
    fn member(compressed: R) -> Self {
        Self::Member(Box::new(flate2::bufread::GzDecoder::new(compressed)))
    }
}

impl<R: BufRead> Read for Gzip<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if into.is_empty() {
            return Ok(0);
        }
        loop {
            match std::mem::replace(self, Self::Done) {
                Self::Member(mut member) => {
                    let n = member.read(into)?;
                    if n > 0 {
                        *self = Self::Member(member);
                        return Ok(n);
                    }
                    let mut rest = member.into_inner();
                    *self = match peek(&mut rest)? {
                        None => Self::Done,
                        Some(0) => Self::Padding(rest),
                        Some(0x1f) => Self::member(rest),
                        Some(_) => return Err(garbage()),
                    };
                }
                Self::Padding(mut rest) => {
                    while let Some(byte) = peek(&mut rest)? {
                        if byte != 0 {
                            return Err(garbage());
                        }
                        let buffer = rest.fill_buf()?;
                        let zeros = buffer.iter().take_while(|byte| **byte == 0).count();
                        rest.consume(zeros);
                    }
                }
                Self::Done => return Ok(0),
            }
        }
    }
}

fn peek(from: &mut impl BufRead) -> io::Result<Option<u8>> {
    loop {
        match from.fill_buf() {
            Ok(buffer) => return Ok(buffer.first().copied()),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

/// What stands behind the last member is none.
#[derive(Debug)]
struct Trailing;

impl std::fmt::Display for Trailing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("there is other data after its end")
    }
}

impl std::error::Error for Trailing {}

fn garbage() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, Trailing)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::testing::{gzip, zstd};

    /// Decode with a buffer that ends at every `step` bytes, so that each seam is met.
    fn decode(compressed: &[u8], step: usize) -> Result<Vec<u8>> {
        let form = Compression::detect(compressed)?;
        let mut plain = Vec::new();
        form.decoder(io::BufReader::with_capacity(step, compressed))?
            .read_to_end(&mut plain)
            .map_err(|e| form.explain(&e))?;
        Ok(plain)
    }

    fn sample(len: u32) -> Vec<u8> {
        (0..len).flat_map(|i| (i.wrapping_mul(2_654_435_761) >> 20).to_le_bytes()).collect()
    }

    #[test]
    fn members_frames_and_padding_are_read_through() {
        let (a, b) = (sample(3000), sample(50));
        let plain = [a.clone(), b.clone()].concat();
        let skippable = [&[0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0][..], b"abc"].concat();
        for (name, compressed) in [
            ("two members", [gzip(&a), gzip(&b)].concat()),
            ("an empty member between", [gzip(&a), gzip(b""), gzip(&b)].concat()),
            ("padding", [gzip(&plain), vec![0; 1000]].concat()),
            ("two frames", [zstd(&a), zstd(&b)].concat()),
            ("skippable frames", [&skippable[..], &zstd(&a), &skippable, &zstd(&b)].concat()),
            ("plain", plain.clone()),
        ] {
            for step in [1, 7, 4096] {
                assert!(decode(&compressed, step).unwrap() == plain, "{name}, {step}");
            }
        }
        assert!(decode(b"", 10).unwrap().is_empty());
    }

    #[test]
    fn every_truncation_is_called_so() {
        let plain = sample(100);
        for compressed in [gzip(&plain), zstd(&plain), [gzip(&plain), gzip(&plain)].concat()] {
            let seam = gzip(&plain).len();
            for len in 4..compressed.len() {
                if len == seam && Compression::detect(&compressed).unwrap() == Compression::Gzip {
                    continue; // exactly one whole member
                }
                let error = decode(&compressed[..len], 64).expect_err(&format!("cut at {len}"));
                assert!(error.to_string().contains("truncated"), "{len}: {error}");
                assert_eq!(error.kind(), Kind::BadInput);
            }
        }
    }

    #[test]
    fn damage_and_garbage_are_errors() {
        let plain = sample(1000);
        let flip = |mut bytes: Vec<u8>, at: usize| {
            bytes[at] ^= 0x55;
            bytes
        };
        let gz = gzip(&plain);
        for (name, compressed) in [
            ("crc", flip(gz.clone(), gz.len() - 8)),
            ("length", flip(gz.clone(), gz.len() - 1)),
            ("garbage", [&gz[..], b"garbage"].concat()),
            ("garbage after padding", [&gz[..], &[0, 0, 1]].concat()),
            ("half a magic number", [&gz[..], &[0x1f, 0, 0, 0, 0, 0, 0, 0, 0, 0]].concat()),
            ("zstd frame then garbage", [&zstd(&plain)[..], b"garbage!"].concat()),
        ] {
            let error = decode(&compressed, 100).expect_err(name);
            assert_eq!(error.kind(), Kind::BadInput, "{name}: {error}");
            assert!(error.to_string().contains("corrupt"), "{name}: {error}");
        }
    }

    #[test]
    fn only_what_stands_behind_the_end_is_trailing() {
        let plain = sample(1000);
        let (gz, zst) = (gzip(&plain), zstd(&plain));
        // gzip's checksum; the type of zstd's first block.
        for (form, packed, at) in [(Compression::Gzip, &gz, gz.len() - 8), (Compression::Zstd, &zst, 6)] {
            let mut damaged = packed.clone();
            damaged[at] = 0xff;
            for (bytes, trailing) in [
                ([&packed[..], b"garbage"].concat(), true),
                ([&packed[..], packed, b"garbage"].concat(), true),
                (damaged, false),
                (packed[..packed.len() - 1].to_vec(), false),
            ] {
                let mut reader = form.decoder(&bytes[..]).unwrap();
                let mut out = Vec::new();
                let error = reader.read_to_end(&mut out).unwrap_err();
                assert_eq!(form.is_trailing(&error), trailing, "{form:?}: {error}");
                assert!(!trailing || out.chunks(plain.len()).all(|part| part == plain));
            }
        }
    }

    #[test]
    fn a_long_zstd_window_is_refused() {
        let window = |log| {
            let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
            encoder.window_log(log).unwrap();
            io::Write::write_all(&mut encoder, &sample(1000)).unwrap();
            encoder.finish().unwrap()
        };
        assert!(decode(&window(27), 100).unwrap() == sample(1000));
        let error = decode(&window(28), 100).unwrap_err();
        assert_eq!(error.to_string(), "its zstd window is larger than 128 MiB");
        assert_eq!(error.kind(), Kind::BadInput);
    }

    #[test]
    fn other_compressions_are_named() {
        for (head, name) in [
            (&b"\xfd7zXZ\0\0\x04"[..], "xz"),
            (b"BZh91AY&SY", "bzip2"),
            (b"\x04\x22\x4d\x18", "lz4"),
            (b"PK\x03\x04", "zip"),
        ] {
            let error = Compression::detect(head).unwrap_err();
            assert_eq!(error.kind(), Kind::Unsupported);
            assert!(error.to_string().contains(name), "{error}");
        }
        // A file whose name begins so is no bzip2 stream.
        assert_eq!(Compression::detect(b"BZh1-notes\0\0").unwrap(), Compression::Plain);
    }
}
