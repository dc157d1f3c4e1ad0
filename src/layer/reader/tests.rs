//! Headers and maps written byte by byte: what a well-behaved writer can't be made to write.

use super::*;
use crate::Kind;

const NEVER: &dyn Fn() -> bool = &|| false;

/// A `ustar` header with a right checksum, changed by `change` before it is summed.
fn header(kind: u8, name: &[u8], size: u64, change: impl FnOnce(&mut [u8; BLOCK])) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    block[..name.len()].copy_from_slice(name);
    block[100..107].copy_from_slice(b"0000644");
    block[124..135].copy_from_slice(format!("{size:011o}").as_bytes());
    block[156] = kind;
    block[257..265].copy_from_slice(b"ustar\x0000");
    change(&mut block);
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|&b| u32::from(b)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

fn padded_to_block(data: &[u8]) -> Vec<u8> {
    let mut data = data.to_vec();
    data.resize(data.len().next_multiple_of(BLOCK), 0);
    data
}

fn first(tar: &[u8]) -> Result<Entry> {
    let mut stream = tar;
    Archive::new(&mut stream, 1 << 40, NEVER).next_entry().map(|entry| entry.expect("an entry"))
}

fn refusal(tar: &[u8]) -> String {
    let error = first(tar).expect_err("refused");
    assert_eq!(error.kind(), Kind::BadInput);
    error.to_string()
}

fn record(key: &str, value: &str) -> String {
    let rest = key.len() + value.len() + 3;
    let length = (rest + 1..).find(|length| *length == rest + length.to_string().len()).expect("a length");
    format!("{length} {key}={value}\n")
}

/// An `x` header, then a file with `data`.
fn pax(records: &[(&str, &str)], data: &[u8]) -> Vec<u8> {
    let payload: String = records.iter().map(|(key, value)| record(key, value)).collect();
    let mut tar = header(b'x', b"pax", payload.len() as u64, |_| {}).to_vec();
    tar.extend(padded_to_block(payload.as_bytes()));
    tar.extend(header(b'0', b"file", data.len() as u64, |_| {}));
    tar.extend(padded_to_block(data));
    tar
}

fn segments(entry: &Entry) -> Vec<(u64, u64)> {
    match &entry.what {
        What::File { map: Some(map), .. } => map.iter().map(|part| (part.offset, part.length)).collect(),
        other => panic!("no map: {other:?}"),
    }
}

#[test]
fn prefixes_of_each_layout() {
    let prefix = |block: &mut [u8; BLOCK]| block[345..348].copy_from_slice(b"dir");
    assert_eq!(first(&header(b'0', b"name", 0, prefix)).unwrap().name, b"dir/name");
    // GNU keeps times there.
    let gnu = header(b'0', b"name", 0, |block| {
        prefix(block);
        block[257..265].copy_from_slice(b"ustar  \0");
    });
    assert_eq!(first(&gnu).unwrap().name, b"name");
    // So does v7, in effect, whose directories are named with a slash.
    let v7 = header(b'\0', b"name/", 0, |block| block[257..].fill(7));
    let entry = first(&v7).unwrap();
    assert_eq!((entry.name.as_slice(), entry.what), (&b"name/"[..], What::Directory));
    // star: a prefix of 131 bytes, then times.
    let star = header(b'0', b"name", 0, |block| {
        block[345..476].fill(b'p');
        block[476..488].copy_from_slice(b"00000000000\0");
        block[508..512].copy_from_slice(b"tar\0");
    });
    assert_eq!(first(&star).unwrap().name, [&[b'p'; 131][..], b"/name"].concat());
    assert_eq!(first(&header(b'0', &[b'n'; 100], 0, |_| {})).unwrap().name, [b'n'; 100]);
}

#[test]
fn checksums_are_verified() {
    let mut block = header(b'0', b"name", 0, |_| {});
    block[0] ^= 1;
    assert!(refusal(&block).contains("checksum"));
    // Summed over signed bytes, as some did.
    let mut block = header(b'0', b"\xff\xff", 0, |_| {});
    let sum: u32 =
        block.iter().enumerate().map(|(i, &b)| if (148..156).contains(&i) { 32 } else { u32::from(b) }).sum();
    block[148..156].copy_from_slice(format!("{:06o}\0 ", sum - 512).as_bytes());
    assert_eq!(first(&block).unwrap().name, b"\xff\xff");
}

#[test]
fn sizes_that_lie() {
    let negative = header(b'0', b"f", 0, |block| block[124..136].fill(0xff));
    assert!(refusal(&negative).contains("size is negative"));
    let huge = header(b'0', b"f", 0, |block| {
        block[124..136].fill(0);
        block[124] = 0x80;
        block[128..136].copy_from_slice(&i64::MAX.to_be_bytes());
    });
    assert!(refusal(&huge).contains("larger than the limit"));
    let extension = header(b'x', b"f", (1 << 20) + 1, |_| {});
    assert!(refusal(&extension).contains("extension header is larger"));
    assert!(refusal(&pax(&[("size", "9223372036854775807")], b"")).contains("limit"));
    // The record's size is the one that counts.
    let mut tar = pax(&[("size", "5")], b"");
    tar.extend(padded_to_block(b"hello"));
    assert_eq!(first(&tar).unwrap().what, What::File { size: 5, map: None });
}

#[test]
fn gnu_names_win_and_lose_their_nul() {
    let long = |kind, payload: &[u8]| {
        let mut tar = header(kind, b"long", payload.len() as u64, |_| {}).to_vec();
        tar.extend(padded_to_block(payload));
        tar
    };
    let mut tar = long(b'L', b"from gnu\0");
    tar.extend(long(b'K', b"target\0"));
    tar.extend(header(b'2', b"short", 0, |_| {}));
    let entry = first(&tar).unwrap();
    assert_eq!((entry.name.as_slice(), entry.what), (&b"from gnu"[..], What::Symlink(b"target".to_vec())));
    for payload in [&b"a\0b\0"[..], b"\0", b""] {
        assert!(refusal(&long(b'L', payload)).contains("empty or holds a NUL"));
    }
}

#[test]
fn old_sparse_maps() {
    let old = |parts: &[(u64, u64)], more: &[(u64, u64)], real: u64, stored: u64| {
        let put = |block: &mut [u8], parts: &[(u64, u64)]| {
            for (at, (offset, length)) in parts.iter().enumerate() {
                block[at * 24..][..11].copy_from_slice(format!("{offset:011o}").as_bytes());
                block[at * 24 + 12..][..11].copy_from_slice(format!("{length:011o}").as_bytes());
            }
        };
        let mut tar = header(b'S', b"f", stored, |block| {
            block[257..265].copy_from_slice(b"ustar  \0");
            put(&mut block[386..482], parts);
            block[482] = u8::from(!more.is_empty());
            block[483..494].copy_from_slice(format!("{real:011o}").as_bytes());
        })
        .to_vec();
        if !more.is_empty() {
            let mut block = [0; BLOCK];
            put(&mut block[..504], more);
            tar.extend(block);
        }
        tar.extend(vec![b'd'; stored as usize]);
        tar
    };
    let entry = first(&old(&[(0, 1), (10, 1), (20, 1), (30, 1)], &[(40, 1), (50, 0)], 50, 5)).unwrap();
    assert_eq!(segments(&entry), [(0, 1), (10, 1), (20, 1), (30, 1), (40, 1), (50, 0)]);
    for (parts, more, real, stored, why) in [
        (&[(10, 1), (0, 1)][..], &[][..], 50, 2, "out of order"),
        (&[(0, 10), (5, 10)], &[], 50, 20, "overlaps"),
        (&[(0, 1)], &[(0, 1)], 50, 2, "out of order"),
        (&[(49, 2)], &[], 50, 2, "past the end"),
        (&[(0, 2)], &[], 50, 3, "2 bytes of data, but 3"),
        (&[(0, 4)], &[], 50, 3, "4 bytes of data, but 3"),
    ] {
        let text = refusal(&old(parts, more, real, stored));
        assert!(text.contains(why), "{text}");
    }
    // An extension that is promised and doesn't come.
    let mut cut = old(&[(0, 1)], &[(10, 1)], 50, 2);
    cut.truncate(BLOCK);
    assert!(refusal(&cut).contains("truncated"));
    // Offsets that overflow, in base 256.
    let mut tar = old(&[(0, 1)], &[], 50, 1);
    let block = header(b'S', b"f", 1, |block| {
        block[386..482].copy_from_slice(&tar[386..482]);
        block[386..398].fill(0);
        block[386] = 0x80;
        block[390..398].copy_from_slice(&i64::MAX.to_be_bytes());
    });
    tar[..BLOCK].copy_from_slice(&block);
    assert!(refusal(&tar).contains("overflows"));
}

#[test]
fn pax_sparse_maps() {
    let zero = [("GNU.sparse.size", "50"), ("GNU.sparse.numblocks", "2"), ("GNU.sparse.offset", "0")];
    let rest = [("GNU.sparse.numbytes", "3"), ("GNU.sparse.offset", "40"), ("GNU.sparse.numbytes", "2")];
    let entry = first(&pax(&[zero, rest].concat(), b"abcde")).unwrap();
    assert_eq!(segments(&entry), [(0, 3), (40, 2)]);
    let entry = first(&pax(
        &[
            ("GNU.sparse.size", "50"),
            ("GNU.sparse.map", "0,3,40,2"),
            ("GNU.sparse.name", "real"),
            ("path", "made up"),
        ],
        b"abcde",
    ))
    .unwrap();
    assert_eq!((segments(&entry), entry.name.as_slice()), (vec![(0, 3), (40, 2)], &b"real"[..]));
    let empty = first(&pax(&[("GNU.sparse.size", "50"), ("GNU.sparse.map", "")], b"")).unwrap();
    assert_eq!(empty.what, What::File { size: 50, map: Some(Vec::new()) });

    let one = [("GNU.sparse.major", "1"), ("GNU.sparse.minor", "0"), ("GNU.sparse.realsize", "50")];
    let data = |map: &str| [padded_to_block(map.as_bytes()), b"abcde".to_vec()].concat();
    let entry = first(&pax(&one, &data("2\n0\n3\n40\n2\n"))).unwrap();
    assert_eq!(segments(&entry), [(0, 3), (40, 2)]);

    for (records, data, why) in [
        (&[("GNU.sparse.map", "0,5")][..], b"abcde".to_vec(), "doesn't say the file's length"),
        (&[("GNU.sparse.size", "9"), ("GNU.sparse.map", "0,5,7")], b"abcde".to_vec(), "odd count"),
        (&[("GNU.sparse.size", "9"), ("GNU.sparse.map", "5,2,0,3")], b"abcde".to_vec(), "out of order"),
        (&[("GNU.sparse.size", "9"), ("GNU.sparse.map", "-1,5")], b"abcde".to_vec(), "not a number"),
        (&[("GNU.sparse.size", "9"), ("GNU.sparse.map", "9223372036854775807,5")], b"abcde".to_vec(), "overflows"),
        (
            &[("GNU.sparse.size", "9"), ("GNU.sparse.numblocks", "2"), ("GNU.sparse.map", "0,5")],
            b"abcde".to_vec(),
            "as many",
        ),
        (
            &[("GNU.sparse.size", "9"), ("GNU.sparse.offset", "1"), ("GNU.sparse.offset", "2")],
            vec![],
            "without a length",
        ),
        (&[("GNU.sparse.size", "9"), ("GNU.sparse.numbytes", "1")], vec![], "without an offset"),
        (&[("GNU.sparse.size", "9"), ("GNU.sparse.offset", "1")], vec![], "as many parts"),
        (&[("GNU.sparse.major", "2"), ("GNU.sparse.realsize", "9")], vec![], "2.0 is unknown"),
        (&one, data("3\n0\n3\n40\n2\n"), "too long"),
        (&one, data("1\n0\n6\n"), "6 bytes of data, but 5"),
        (&one, b"1\n0\n5\n".to_vec(), "runs past its data"),
        (&one, data(&"1".repeat(30)), "too long"),
        (&one, [b"999999\n".to_vec(), b"1\n2\n".repeat(127)].concat(), "out of order"),
    ] {
        let text = refusal(&pax(records, &data));
        assert!(text.contains(why), "{records:?}: {text}");
    }
}

#[test]
fn errors_of_the_stream_keep_their_kind() {
    struct Broken(fn() -> std::io::Error);
    impl Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
            Err((self.0)())
        }
    }
    let kind = |error| Archive::new(&mut Broken(error), 1 << 20, NEVER).next_entry().expect_err("broken").kind();
    assert_eq!(kind(|| std::io::Error::other(Error::new(Kind::NotFound, "no blob"))), Kind::NotFound);
    assert_eq!(kind(|| std::io::ErrorKind::InvalidData.into()), Kind::BadInput);
    assert_eq!(kind(|| std::io::Error::from_raw_os_error(libc::EIO)), Kind::System);
}

/// Streams that hand out a few bytes at a time give the same entries, and long data comes in whole blocks.
#[test]
fn short_reads_change_nothing() {
    struct Dribble<'a>(&'a [u8], usize);
    impl Read for Dribble<'_> {
        fn read(&mut self, to: &mut [u8]) -> std::io::Result<usize> {
            self.1 = self.1 * 7 % 1009 + 1;
            let count = self.1.min(to.len()).min(self.0.len());
            let (head, tail) = self.0.split_at(count);
            to[..count].copy_from_slice(head);
            self.0 = tail;
            Ok(count)
        }
    }
    let data: Vec<u8> = (0..600_000_u32).map(|n| (n % 251) as u8).collect();
    let mut tar = pax(&[("mtime", "1.5")], &data);
    tar.extend(header(b'5', b"next/", 0, |_| {}));
    let mut stream = Dribble(&tar, 1);
    let mut archive = Archive::new(&mut stream, 1 << 30, NEVER);
    let entry = archive.next_entry().unwrap().unwrap();
    assert_eq!(entry.attributes.mtime, Time { seconds: 1, nanoseconds: 500_000_000 });
    let mut seen = Vec::new();
    while seen.len() < data.len() {
        let left = (data.len() - seen.len()) as u64;
        let lent = archive.data(left).unwrap();
        assert!(lent.len() == source::BUFFER || lent.len() as u64 == left);
        seen.extend_from_slice(lent);
    }
    assert_eq!(seen, data);
    assert_eq!(archive.next_entry().unwrap().unwrap().name, b"next/");
    assert!(archive.next_entry().unwrap().is_none());
}
