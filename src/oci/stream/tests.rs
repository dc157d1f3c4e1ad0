//! The pipeline against blobs with every fault, and against callers who leave early.

use std::sync::mpsc;

use super::*;
use crate::oci::testing::{gzip, zstd};

/// Bytes that fill every buffer several times, repeat nowhere near and still shrink a little.
fn sample(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_u32;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            (state & 0x3f) as u8
        })
        .collect()
}

fn expected(blob: &[u8], plain: &[u8]) -> Expected {
    Expected {
        blob: Some((Digest::of(blob), blob.len() as u64)),
        diff_id: Some(DiffId(Digest::of(plain))),
        max_bytes: u64::MAX,
    }
}

fn start(blob: &[u8], expected: Expected) -> LayerStream {
    LayerStream::start(Box::new(io::Cursor::new(blob.to_vec())), expected, Arc::default()).unwrap()
}

/// Read all, then finish. The bytes are `None` if reading failed before the end.
fn run(blob: &[u8], expected: Expected) -> (Option<Vec<u8>>, Result<Verified>) {
    let mut stream = start(blob, expected);
    let mut plain = Vec::new();
    let read = stream.read_to_end(&mut plain);
    (read.ok().map(|_| plain), stream.finish())
}

/// Run something on a thread of its own; fail if it hangs.
fn within_a_minute<T: Send + 'static>(run: impl FnOnce() -> T + Send + 'static) -> T {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || sender.send(run()));
    receiver.recv_timeout(Duration::from_mins(1)).expect("hangs or has failed")
}

#[test]
fn every_form_comes_out_whole_and_verified() {
    let plain = sample(7_000_001);
    let half = plain.len() / 2;
    for (name, blob) in [
        ("plain", plain.clone()),
        ("gzip", gzip(&plain)),
        ("gzip, two members", [gzip(&plain[..half]), gzip(&plain[half..])].concat()),
        ("gzip, padded", [gzip(&plain), vec![0; 300_000]].concat()),
        ("zstd", zstd(&plain)),
        ("zstd, two frames", [zstd(&plain[..half]), zstd(&plain[half..])].concat()),
    ] {
        let progress = Arc::new(AtomicU64::new(0));
        let raw = Box::new(io::Cursor::new(blob.clone()));
        let mut stream = LayerStream::start(raw, expected(&blob, &plain), Arc::clone(&progress)).unwrap();
        let mut out = Vec::new();
        stream.read_to_end(&mut out).unwrap();
        assert!(out == plain, "{name}");
        let verified = stream.finish().unwrap();
        assert_eq!(verified.blob, Digest::of(&blob), "{name}");
        assert_eq!(verified.blob_size, blob.len() as u64, "{name}");
        assert_eq!(verified.diff_id.0, Digest::of(&plain), "{name}");
        assert_eq!(verified.plain_size, plain.len() as u64, "{name}");
        assert_eq!(progress.load(Ordering::Relaxed), blob.len() as u64, "{name}");
    }
}

#[test]
fn what_stands_behind_is_ignored_only_where_the_diff_id_vouches_for_what_came_before() {
    for plain in [sample(3_000_001), sample(100), Vec::new()] {
        for blob in [gzip(&plain), zstd(&plain)] {
            let blob = [&blob[..], &[0; 600], &b"somebody's notes\n".repeat(100_000)].concat();
            let good = expected(&blob, &plain);
            let (out, verified) = run(&blob, good);
            assert!(out.as_deref() == Some(&plain[..]));
            assert_eq!(
                (verified.as_ref().unwrap().blob, verified.unwrap().plain_size),
                (good.blob.unwrap().0, plain.len() as u64)
            );
            for doubtful in
                [Expected { diff_id: None, ..good }, Expected { diff_id: Some(DiffId(Digest::of(b"other"))), ..good }]
            {
                let (out, verified) = run(&blob, doubtful);
                assert_eq!(out, None);
                assert!(verified.unwrap_err().to_string().contains("corrupt"));
            }
            // The blob itself is still digested to its end.
            let longer = [&blob[..], b"!"].concat();
            assert!(run(&longer, good).1.unwrap_err().to_string().contains("its descriptor says"));
        }
    }
}

#[test]
fn nothing_has_to_be_expected_and_nothing_may_be_there() {
    let nothing = Expected { blob: None, diff_id: None, max_bytes: 0 };
    let (out, verified) = run(b"", nothing);
    assert_eq!((out, verified.unwrap().plain_size), (Some(Vec::new()), 0));
    let blob = gzip(b"abc");
    let (_, verified) = run(&blob, Expected { max_bytes: 3, ..nothing });
    assert_eq!(verified.unwrap().diff_id.0, Digest::of(b"abc"));
}

#[test]
fn finish_drains_what_was_not_read() {
    let plain = sample(9_000_000);
    let blob = gzip(&plain);
    let mut stream = start(&blob, expected(&blob, &plain));
    stream.read_exact(&mut [0; 1000]).unwrap();
    assert_eq!(stream.finish().unwrap().plain_size, plain.len() as u64);
}

#[test]
fn every_mismatch_names_both_values() {
    let plain = sample(2_000_000);
    let other = Digest::of(b"other");
    for blob in [plain.clone(), gzip(&plain), zstd(&plain)] {
        let good = expected(&blob, &plain);
        let (digest, size) = good.blob.unwrap();
        let diff_id = DiffId(Digest::of(&plain));
        for (bad, words) in [
            (Expected { blob: Some((other, size)), ..good }, [other.to_string(), digest.to_string()]),
            (Expected { blob: Some((digest, size + 1)), ..good }, [size.to_string(), (size + 1).to_string()]),
            (Expected { blob: Some((digest, size - 1)), ..good }, [size.to_string(), (size - 1).to_string()]),
            (Expected { diff_id: Some(DiffId(other)), ..good }, [other.to_string(), diff_id.to_string()]),
        ] {
            let error = run(&blob, bad).1.unwrap_err();
            assert_eq!(error.kind(), Kind::BadInput);
            for word in words {
                assert!(error.to_string().contains(&word), "{word} isn't in: {error}");
            }
        }
    }
}

#[test]
fn a_wrong_blob_never_ends_like_a_good_one() {
    let plain = sample(2_000_000);
    for blob in [plain.clone(), gzip(&plain), zstd(&plain)] {
        let mut bad = expected(&blob, &plain);
        bad.blob = bad.blob.map(|(_, size)| (Digest::of(b"other"), size));
        assert_eq!(run(&blob, bad).0, None);
    }
}

#[test]
fn a_flipped_bit_is_a_digest_mismatch_where_a_digest_is_known() {
    let plain = sample(3_000_000);
    for blob in [plain.clone(), gzip(&plain), zstd(&plain)] {
        for at in [20, blob.len() / 3, blob.len() - 1] {
            let mut damaged = blob.clone();
            damaged[at] ^= 0x10;
            let error = run(&damaged, expected(&blob, &plain)).1.unwrap_err();
            assert!(error.to_string().contains(&Digest::of(&damaged).to_string()), "{at}: {error}");
            // Without one, it is found all the same, by the decompressor or by the diff ID.
            let unknown = Expected { blob: None, ..expected(&blob, &plain) };
            assert_eq!(run(&damaged, unknown).1.unwrap_err().kind(), Kind::BadInput);
        }
    }
}

#[test]
fn truncation_is_told_by_size_or_by_the_decompressor() {
    let plain = sample(3_000_000);
    for (form, blob) in [("gzip", gzip(&plain)), ("zstd", zstd(&plain))] {
        let cut = &blob[..blob.len() - 5];
        let error = run(cut, expected(&blob, &plain)).1.unwrap_err();
        assert!(error.to_string().contains(&cut.len().to_string()), "{error}");
        let (out, result) = run(cut, Expected { blob: None, ..expected(&blob, &plain) });
        assert_eq!(out, None);
        assert_eq!(result.unwrap_err().to_string(), format!("its {form} data is truncated"));
        // The blob is as promised, and was made from a broken file.
        let (out, result) = run(cut, expected(cut, &plain));
        assert_eq!(out, None);
        assert_eq!(result.unwrap_err().to_string(), format!("its {form} data is truncated"));
    }
}

#[test]
fn a_bomb_is_stopped_at_the_limit() {
    let zeros = vec![0; 40_000_000];
    for blob in [gzip(&zeros), zstd(&zeros), zeros.clone()] {
        let limited = Expected { max_bytes: 1_000_000, ..expected(&blob, &zeros) };
        let mut stream = start(&blob, limited);
        let mut out = Vec::new();
        stream.read_to_end(&mut out).unwrap_err();
        assert!(out.len() <= 1_000_000, "{}", out.len());
        let error = stream.finish().unwrap_err();
        assert_eq!(error.to_string(), "it is larger than the limit of 1000000 bytes when decompressed");
        assert!(error.hint().unwrap().contains("--max-layer-size"));
        assert_eq!(error.kind(), Kind::BadInput);
    }
    let exact = Expected { max_bytes: zeros.len() as u64, ..expected(&zeros, &zeros) };
    assert_eq!(run(&zeros, exact).1.unwrap().plain_size, zeros.len() as u64);
}

/// A source that never ends, counts, and can be told to break.
struct Endless {
    read: Arc<AtomicU64>,
    breaks_after: u64,
}

impl Read for Endless {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.read.fetch_add(into.len() as u64, Ordering::Relaxed) > self.breaks_after {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        into.fill(b'x');
        Ok(into.len())
    }
}

const UNKNOWN: Expected = Expected { blob: None, diff_id: None, max_bytes: u64::MAX };

#[test]
fn dropping_ends_the_threads_and_bounds_what_was_read() {
    let read = Arc::new(AtomicU64::new(0));
    let source = Endless { read: Arc::clone(&read), breaks_after: u64::MAX };
    let held = Arc::clone(&read);
    within_a_minute(move || {
        let mut stream = LayerStream::start(Box::new(source), UNKNOWN, Arc::default()).unwrap();
        stream.read_exact(&mut [0; 100]).unwrap();
        // Let it run into the full channels.
        std::thread::sleep(Duration::from_millis(100));
        drop(stream);
    });
    // Whoever held the source is gone, and only the buffers were filled.
    assert_eq!(Arc::strong_count(&held), 2);
    assert!(read.load(Ordering::Relaxed) < 8 << 20, "{read:?}");
}

#[test]
fn dropping_unread_or_in_the_middle_of_a_huge_member_does_not_hang() {
    let blob = gzip(&vec![0; 50_000_000]);
    for bytes in [0, 1, 10_000_000] {
        let blob = blob.clone();
        within_a_minute(move || {
            let mut stream = start(&blob, UNKNOWN);
            io::copy(&mut (&mut stream).take(bytes), &mut io::sink()).unwrap();
        });
    }
}

#[test]
fn dropping_does_not_wait_for_a_pipe_that_nobody_writes_to() {
    let (reader, writer) = io::pipe().unwrap();
    within_a_minute(move || drop(LayerStream::start(Box::new(reader), UNKNOWN, Arc::default()).unwrap()));
    drop(writer);
}

#[test]
fn a_read_error_keeps_its_kind() {
    let source = Endless { read: Arc::default(), breaks_after: 3_000_000 };
    let mut stream = LayerStream::start(Box::new(source), UNKNOWN, Arc::default()).unwrap();
    io::copy(&mut stream, &mut io::sink()).unwrap_err();
    let error = stream.finish().unwrap_err();
    assert_eq!((error.kind(), error.to_string().contains("Input/output error")), (Kind::System, true), "{error}");
}

#[test]
fn too_long_a_blob_is_not_read_to_its_end() {
    let source = Endless { read: Arc::default(), breaks_after: u64::MAX };
    let expected = Expected { blob: Some((Digest::of(b""), 1000)), ..UNKNOWN };
    let error = within_a_minute(move || {
        LayerStream::start(Box::new(source), expected, Arc::default()).unwrap().finish().unwrap_err()
    });
    assert!(error.to_string().contains("1000"), "{error}");
    assert_eq!(error.kind(), Kind::BadInput);
}

#[test]
fn explain_prefers_the_streams_own_fault() {
    let plain = sample(3_000_000);
    let mut damaged = plain.clone();
    damaged[2_999_999] ^= 1;
    let broken_tar = || Error::new(Kind::BadInput, "not a tar header");
    let error = start(&damaged, expected(&plain, &plain)).explain(broken_tar());
    assert!(error.to_string().contains("digest"), "{error}");
    let error = start(&plain, expected(&plain, &plain)).explain(broken_tar());
    assert_eq!(error.to_string(), "not a tar header");
    let full = Error::new(Kind::NoSpace, "full");
    assert_eq!(start(&damaged, expected(&plain, &plain)).explain(full).to_string(), "full");
}

#[test]
fn unsupported_compression_is_named_by_reader_and_finish() {
    let mut stream = start(b"\xfd7zXZ\0\0\x04 and so on", UNKNOWN);
    let error = stream.read(&mut [0; 10]).unwrap_err();
    assert!(error.to_string().contains("xz"), "{error}");
    let error = stream.finish().unwrap_err();
    assert_eq!((error.kind(), error.to_string().contains("xz")), (Kind::Unsupported, true), "{error}");
}
