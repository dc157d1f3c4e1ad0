//! Headers byte by byte: what other programs make of them is in `driver-tests`.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use super::header::Header;
use crate::layer::reader::{Archive, Attributes, Entry, Time, What};

fn attributes(mtime: (i64, u32)) -> Attributes {
    let (seconds, nanoseconds) = mtime;
    Attributes { mode: 0o640, uid: 7, gid: 8, mtime: Time { seconds, nanoseconds }, xattrs: BTreeMap::new() }
}

/// What our own reader makes of an encoded header and the data behind it.
fn read(mut encoded: Vec<u8>, data: &[u8]) -> Entry {
    encoded.extend(data);
    encoded.resize(encoded.len().next_multiple_of(512) + 1024, 0);
    let mut stream = &encoded[..];
    Archive::new(&mut stream, u64::MAX, &|| false).next_entry().unwrap().unwrap()
}

#[test]
fn a_plain_entry_is_one_block() {
    let attributes = attributes((1_700_000_000, 0));
    let encoded = Header { kind: b'0', size: 5, ..Header::new(b"etc/hostname", &attributes) }.encoded().unwrap();
    assert_eq!(encoded.len(), 512);
    let field = |from: usize, to: usize| encoded[from..to].escape_ascii().to_string();
    assert_eq!(field(0, 13), "etc/hostname\\x00");
    assert_eq!(field(100, 124), "0000640\\x000000007\\x000000010\\x00");
    assert_eq!(field(124, 148), "00000000005\\x0014524770400\\x00");
    assert_eq!(field(156, 158), "0\\x00");
    assert_eq!(field(257, 265), "ustar\\x0000");
    assert!(encoded[265..329].iter().all(|&byte| byte == 0), "no names of users and groups");
    assert_eq!(field(329, 345), "0000000\\x000000000\\x00");
}

#[test]
fn names_are_cut_at_a_slash_or_have_a_record() {
    let attributes = attributes((0, 0));
    let long = |parts: &[usize]| parts.iter().map(|&n| "n".repeat(n)).collect::<Vec<_>>().join("/").into_bytes();
    for (parts, fits) in [
        (&[100][..], true),
        (&[101], false),
        (&[155, 100], true),
        (&[156, 100], false),
        (&[155, 101], false),
        (&[20, 20, 20, 20, 20, 20, 20, 20, 20, 20, 20], true),
        (&[50, 255], false),
        (&[255, 255, 255, 255], false),
    ] {
        let name = long(parts);
        let encoded = Header { kind: b'6', ..Header::new(&name, &attributes) }.encoded().unwrap();
        assert_eq!(encoded.len() == 512, fits, "{parts:?}");
        assert_eq!(read(encoded, b"").name, name);
        let directory = [name.as_slice(), b"/"].concat();
        let encoded = Header { kind: b'5', ..Header::new(&directory, &attributes) }.encoded().unwrap();
        assert_eq!(read(encoded, b"").name, directory);
        let encoded = Header { kind: b'2', link: &name, ..Header::new(b"l", &attributes) }.encoded().unwrap();
        assert_eq!(read(encoded, b"").what, What::Symlink(name));
    }
}

#[test]
fn numbers_past_their_fields_have_records() {
    for seconds in [i64::MIN / 1_000_000_000, -2_000_000_000, -1, 0, 1, 0o77_777_777_777, 0o100_000_000_000, 1 << 40]
    {
        for nanoseconds in [0, 1, 500_000_000, 999_999_999] {
            let attributes = attributes((seconds, nanoseconds));
            let encoded = Header { kind: b'6', ..Header::new(b"f", &attributes) }.encoded().unwrap();
            let plain = nanoseconds == 0 && (0..=0o77_777_777_777).contains(&seconds);
            assert_eq!(encoded.len() == 512, plain, "{seconds} {nanoseconds}");
            assert_eq!(read(encoded, b"").attributes.mtime, Time { seconds, nanoseconds });
        }
    }
    let large = Attributes { uid: 0o10_000_000, gid: u32::MAX - 1, ..attributes((0, 0)) };
    let encoded = Header { kind: b'0', size: 9 << 30, ..Header::new(b"f", &large) }.encoded().unwrap();
    let records = &encoded[512..1024];
    let text = b"18 gid=4294967294\n19 size=9663676416\n15 uid=2097152\n";
    assert_eq!(records[..text.len()].escape_ascii().to_string(), text.escape_ascii().to_string(), "in order");
    let entry = read(encoded, b"");
    assert_eq!((entry.attributes.uid, entry.attributes.gid), (large.uid, large.gid));
    assert_eq!(entry.what, What::File { size: 9 << 30, map: None });
    let device = Header { kind: b'3', device: (0xfff, 0xf_ffff), ..Header::new(b"d", &large) };
    assert_eq!(read(device.encoded().unwrap(), b"").what, What::CharDevice { major: 0xfff, minor: 0xf_ffff });
}

#[test]
fn attributes_may_have_any_name_and_value() {
    let xattrs: BTreeMap<Vec<u8>, Vec<u8>> = [
        (&b"user.plain"[..], &b"\0\n=\xff"[..]),
        (b"user.empty", b""),
        (b"user.a=b %41\n\xff", b"\0\x01\x02\xfe"),
        (b"user.=", b""),
        (b"user.==", b"a"),
        (b"user.===", b"ab"),
        (b"user.percent%3D", b"x"),
    ]
    .map(|(name, value)| (name.to_vec(), value.to_vec()))
    .into();
    let attributes = Attributes { xattrs: xattrs.clone(), ..attributes((0, 0)) };
    let encoded = Header { kind: b'6', ..Header::new(b"f", &attributes) }.encoded().unwrap();
    assert_eq!(read(encoded, b"").attributes.xattrs, xattrs);
    let much = (0..20).map(|n| (format!("user.{n}").into_bytes(), vec![0; 60_000])).collect();
    let attributes = Attributes { xattrs: much, ..attributes };
    let error = Header { kind: b'6', ..Header::new(b"f", &attributes) }.encoded().unwrap_err();
    assert_eq!(error.kind(), crate::Kind::Unsupported, "{error}");
}
