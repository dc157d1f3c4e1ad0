//! Archives that readers of tar read differently, and what this one makes of them.

use reflinkd::layer::reader::What;

use super::listing::{Listed, list};
use super::writer::{Raw, Style, Tar, record};

/// An archive, and what is expected of it in the words of [`shown`] or of the refusal.
#[derive(Debug)]
pub(crate) struct Doubt {
    pub(crate) what: &'static str,
    pub(crate) tar: Vec<u8>,
    expected: Result<&'static str, &'static str>,
}

/// An entry in short.
fn shown(listed: &Listed) -> String {
    let entry = &listed.entry;
    let name = entry.name.escape_ascii();
    match &entry.what {
        What::File { size, map: None } => format!("{name}:{size}"),
        What::File { size, map: Some(map) } => format!("{name}:{size}/{}", map.len()),
        What::HardLink(target) => format!("{name}=>{}", target.escape_ascii()),
        What::Symlink(target) => format!("{name}->{}", target.escape_ascii()),
        What::CharDevice { major, minor } => format!("{name}:c{major},{minor}"),
        What::BlockDevice { major, minor } => format!("{name}:b{major},{minor}"),
        What::Directory => format!("{name}/"),
        What::Fifo => format!("{name}|"),
    }
}

/// What no field or flag of [`shown`] says.
fn described(listed: &Listed) -> String {
    let attributes = &listed.entry.attributes;
    let (seconds, nanoseconds) = (attributes.mtime.seconds, attributes.mtime.nanoseconds);
    format!("{} {:o} {}:{} {seconds}+{nanoseconds}", shown(listed), attributes.mode, attributes.uid, attributes.gid)
}

/// A header changed before its checksum is made.
fn header(raw: &Raw, style: Style, change: impl FnOnce(&mut [u8])) -> Vec<u8> {
    let mut tar = Tar::default();
    tar.entry(raw, style);
    let mut bytes = tar.0;
    change(&mut bytes[..512]);
    sum(&mut bytes[..512]);
    bytes
}

/// Write a header's checksum.
pub(crate) fn sum(header: &mut [u8]) {
    header[148..156].fill(b' ');
    let sum: u32 = header.iter().map(|&b| u32::from(b)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

/// `value` in base 256, as GNU tar writes it.
fn base_256(field: &mut [u8], value: i64) {
    field.fill(if value < 0 { 0xff } else { 0 });
    let width = 8.min(field.len() - 1);
    let start = field.len() - width;
    field[start..].copy_from_slice(&value.to_be_bytes()[8 - width..]);
    if value >= 0 {
        field[0] = 0x80;
    }
}

fn end(mut tar: Vec<u8>) -> Vec<u8> {
    tar.extend([0; 1024]);
    tar
}

/// Headers of one kind before a file `plain` of five bytes.
fn before(blocks: &[(u8, &[u8])]) -> Vec<u8> {
    let mut tar = Tar::default();
    for (kind, payload) in blocks {
        tar.block(*kind, b"extension", payload);
    }
    tar.entry(&Raw::new(b'0', "plain").data("hello"), Style::Pax);
    tar.end()
}

fn records(pairs: &[(&str, &[u8])]) -> Vec<u8> {
    let mut payload = Vec::new();
    for (key, value) in pairs {
        record(&mut payload, key.as_bytes(), value);
    }
    payload
}

const PLAIN: Raw = Raw {
    kind: b'0',
    name: Vec::new(),
    link: Vec::new(),
    mode: 0o644,
    uid: 0,
    gid: 0,
    mtime: (0, 0),
    data: Vec::new(),
    xattrs: std::collections::BTreeMap::new(),
    rdev: (0, 0),
};

fn plain() -> Raw {
    Raw { name: b"plain".to_vec(), data: b"hello".to_vec(), ..PLAIN }
}

/// Fields of a header with numbers of every form.
fn numbers() -> Vec<Doubt> {
    let one = |what, expected, style, change: &dyn Fn(&mut [u8])| Doubt {
        what,
        tar: end(header(&plain(), style, change)),
        expected,
    };
    let gnu = Style::Gnu;
    vec![
        one("mode with the file type in it", Ok("plain:5 4755 0:0 0+0"), Style::Pax, &|h| {
            h[100..108].copy_from_slice(b"0104755\0");
        }),
        one("mode in base 256", Ok("plain:5 644 0:0 0+0"), gnu, &|h| base_256(&mut h[100..108], 0o644)),
        one("negative mode", Ok("plain:5 7777 0:0 0+0"), gnu, &|h| base_256(&mut h[100..108], -1)),
        one("owners past 2^31", Ok("plain:5 644 2147483648:4294967294 0+0"), gnu, &|h| {
            base_256(&mut h[108..116], 1 << 31);
            base_256(&mut h[116..124], (1 << 32) - 2);
        }),
        one("the owner that is nobody's", Err("uid 4294967295 is not valid"), gnu, &|h| {
            base_256(&mut h[108..116], (1 << 32) - 1);
        }),
        one("negative owner", Err("gid -5 is not valid"), gnu, &|h| base_256(&mut h[116..124], -5)),
        one("size in base 256", Ok("plain:5 644 0:0 0+0"), gnu, &|h| base_256(&mut h[124..136], 5)),
        one("negative size", Err("size is negative"), gnu, &|h| base_256(&mut h[124..136], -512)),
        one("size of 2^62", Err("larger than the limit"), gnu, &|h| base_256(&mut h[124..136], 1 << 62)),
        one("negative time", Ok("plain:5 644 0:0 -86400+0"), gnu, &|h| base_256(&mut h[136..148], -86400)),
        one("the last time", Ok("plain:5 644 0:0 9223372036854775807+0"), gnu, &|h| {
            base_256(&mut h[136..148], i64::MAX);
        }),
        one("the first time", Ok("plain:5 644 0:0 -9223372036854775808+0"), gnu, &|h| {
            base_256(&mut h[136..148], i64::MIN);
        }),
        one("a time of 12 octal digits", Ok("plain:5 644 0:0 68719476735+0"), gnu, &|h| h[136..148].fill(b'7')),
        one("numbers among blanks", Ok("plain:5 644 7:0 0+0"), Style::Pax, &|h| {
            h[108..116].copy_from_slice(b"     7 \0");
        }),
        one("empty numbers", Ok("plain:5 0 0:0 0+0"), Style::Pax, &|h| h[100..124].fill(0)),
        one("a number with a sign", Err("uid is not a number"), Style::Pax, &|h| {
            h[108..116].copy_from_slice(b"-000001\0");
        }),
        one("a number with a line between its digits", Err("uid is not a number"), Style::Pax, &|h| {
            h[108..116].copy_from_slice(b"0000_01\0");
        }),
        one("checksum of signed bytes", Ok("\\xff\\xfe\\xfd:5 644 0:0 0+0"), Style::Pax, &|h| {
            h[..5].copy_from_slice(b"\xff\xfe\xfd\0\0");
        }),
    ]
    .into_iter()
    .map(|mut doubt| {
        if doubt.what == "checksum of signed bytes" {
            let header = &mut doubt.tar[..512];
            header[148..156].fill(b' ');
            let sum: i64 = header.iter().map(|&b| i64::from(b.cast_signed())).sum();
            header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
        doubt
    })
    .collect()
}

/// Names, types and magics.
fn layouts() -> Vec<Doubt> {
    let one = |what, expected, raw: Raw, style, change: &dyn Fn(&mut [u8])| Doubt {
        what,
        tar: end(header(&raw, style, change)),
        expected,
    };
    let prefix = |h: &mut [u8]| h[345..348].copy_from_slice(b"pre");
    let kind = |kind: u8| Raw { kind, ..plain() };
    let bare = |kind: u8| Raw { kind, data: Vec::new(), ..plain() };
    let device = |kind, rdev| Raw { rdev, ..bare(kind) };
    vec![
        one("ustar prefix", Ok("pre/plain:5 644 0:0 0+0"), plain(), Style::Pax, &prefix),
        one("prefix behind GNU's magic", Ok("plain:5 644 0:0 0+0"), plain(), Style::Gnu, &prefix),
        one("prefix without a magic", Ok("plain:5 644 0:0 0+0"), plain(), Style::Pax, &|h| {
            prefix(h);
            h[257..265].fill(0);
        }),
        one("ustar without a version", Ok("pre/plain:5 644 0:0 0+0"), plain(), Style::Pax, &|h| {
            prefix(h);
            h[263..265].fill(0);
        }),
        one("name without a NUL", Ok(NAME_100), Raw { name: vec![b'n'; 100], ..plain() }, Style::Pax, &|_| {}),
        one("old directory", Ok("plain// 644 0:0 0+0"), bare(0), Style::Pax, &|h| h[5] = b'/'),
        one("file whose name ends in a slash", Ok("plain/:5 644 0:0 0+0"), plain(), Style::Pax, &|h| h[5] = b'/'),
        one("contiguous file", Ok("plain:5 644 0:0 0+0"), kind(b'7'), Style::Pax, &|_| {}),
        one("unknown type", Err("type 'Q' is unknown"), kind(b'Q'), Style::Pax, &|_| {}),
        one("GNU directory listing", Err("type 'D' is unknown"), kind(b'D'), Style::Gnu, &|_| {}),
        one("volume label", Err("volume label"), bare(b'V'), Style::Gnu, &|_| {}),
        one("continued file", Err("continues"), kind(b'M'), Style::Gnu, &|_| {}),
        one("directory that claims data", Ok("plain/ 644 0:0 0+0"), bare(b'5'), Style::Pax, &claims),
        one("symlink that claims data", Ok("plain->x 644 0:0 0+0"), bare(b'2').link("x"), Style::Pax, &claims),
        one("hard link that claims data", Ok("plain=>x 644 0:0 0+0"), bare(b'1').link("x"), Style::Pax, &claims),
        one("FIFO that claims data", Ok("plain| 644 0:0 0+0"), bare(b'6'), Style::Pax, &claims),
        one(
            "the last device",
            Ok("plain:c4095,1048575 644 0:0 0+0"),
            device(b'3', (4095, 0xf_ffff)),
            Style::Pax,
            &|_| {},
        ),
        one("device past the kernel's", Err("device numbers"), device(b'4', (4095, 0x10_0000)), Style::Pax, &|_| {}),
        one("device of an old header", Ok("plain:b0,0 644 0:0 0+0"), device(b'4', (8, 1)), Style::Pax, &|h| {
            h[257..265].fill(0);
        }),
        one("negative device", Err("device numbers"), device(b'4', (8, 1)), Style::Gnu, &|h| {
            base_256(&mut h[329..337], -1);
        }),
    ]
}

const NAME_100: &str = "nnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnn:5 644 0:0 0+0";

fn claims(header: &mut [u8]) {
    header[124..136].copy_from_slice(b"00000001000\0");
}

/// What stands before an entry.
fn extensions() -> Vec<Doubt> {
    let path = |value: &[u8]| records(&[("path", value)]);
    let one = |what, expected, blocks: &[(u8, &[u8])]| Doubt { what, tar: before(blocks), expected };
    vec![
        one("long name, then PAX path", Ok("gnu:5 644 0:0 0+0"), &[(b'L', b"gnu\0"), (b'x', &path(b"pax"))]),
        one("PAX path, then long name", Ok("gnu:5 644 0:0 0+0"), &[(b'x', &path(b"pax")), (b'L', b"gnu\0")]),
        one("long name without its NUL", Ok("gnu:5 644 0:0 0+0"), &[(b'L', b"gnu")]),
        one("long name with a NUL in it", Err("holds a NUL"), &[(b'L', b"gnu\0x\0")]),
        one("two PAX headers", Err("two PAX headers"), &[(b'x', &path(b"a")), (b'x', &path(b"b"))]),
        one(
            "a path twice in one header",
            Ok("b:5 644 0:0 0+0"),
            &[(b'x', &records(&[("path", b"a"), ("path", b"b")]))],
        ),
        one("an empty path", Ok("plain:5 644 0:0 0+0"), &[(b'x', &path(b""))]),
        one("a path of bytes", Ok("\\xff\\n=\\x01:5 644 0:0 0+0"), &[(b'x', &path(b"\xff\n=\x01"))]),
        one("a path with a slash at its end", Ok("dir/:5 644 0:0 0+0"), &[(b'x', &path(b"dir/"))]),
        Doubt {
            what: "a file whose PAX path ends in a slash",
            tar: {
                let mut tar = Tar::default();
                tar.pax(&[("path", b"dir/")]);
                tar.entry(&Raw { kind: 0, data: Vec::new(), ..plain() }, Style::Pax);
                tar.end()
            },
            expected: Ok("dir// 644 0:0 0+0"),
        },
        one("a number too many in a length", Err("malformed"), &[(b'x', b"11 path=a\n")]),
        one("a length too short", Err("malformed"), &[(b'x', b"8 path=a\n")]),
        one("a record without its line end", Err("malformed"), &[(b'x', b"9 path=ab")]),
        one("a length with zeros", Ok("a:5 644 0:0 0+0"), &[(b'x', b"00013 path=a\n")]),
        one("an empty PAX header", Ok("plain:5 644 0:0 0+0"), &[(b'x', b"")]),
        one(
            "owners and times",
            Ok("plain:5 644 4294967294:70 -2+750000000"),
            &[(b'x', &records(&[("uid", b"4294967294"), ("gid", b"70"), ("mtime", b"-1.25")]))],
        ),
        one(
            "a time of twelve digits of fraction",
            Ok("plain:5 644 0:0 1+999999999"),
            &[(b'x', &records(&[("mtime", b"1.999999999999")]))],
        ),
        one("a time that isn't one", Err("mtime"), &[(b'x', &records(&[("mtime", b"1e9")]))]),
        one("a size that takes a header's place", Ok("plain:4 644 0:0 0+0"), &[(b'x', &records(&[("size", b"4")]))]),
        one("an owner that isn't a number", Err("uid"), &[(b'x', &records(&[("uid", b"root")]))]),
        one(
            "owner of all, owner of one",
            Ok("plain:5 644 7:5 0+0"),
            &[
                (b'g', &records(&[("uid", b"5"), ("gid", b"5"), ("comment", b"x")])),
                (b'x', &records(&[("uid", b"7")])),
            ],
        ),
        one(
            "owner of all taken back",
            Ok("plain:5 644 0:5 0+0"),
            &[(b'g', &records(&[("uid", b"5"), ("gid", b"5")])), (b'x', &records(&[("uid", b"")]))],
        ),
        one("a name for all", Err("global PAX header sets \"path\""), &[(b'g', &path(b"all"))]),
        one(
            "attributes for all",
            Err("global PAX header sets"),
            &[(b'g', &records(&[("SCHILY.xattr.user.a", b"b")]))],
        ),
        one(
            "an extension of a megabyte and more",
            Err("larger than 1048576"),
            &[(b'x', &records(&[("comment", &vec![b'x'; 1 << 20])]))],
        ),
    ]
}

/// Where the archive ends, or doesn't.
fn ends() -> Vec<Doubt> {
    let entry = header(&plain(), Style::Pax, |_| {});
    let one = |what, expected, tar: Vec<u8>| Doubt { what, tar, expected };
    let zeros = |blocks: usize| vec![0; 512 * blocks];
    vec![
        one("nothing", Ok(""), Vec::new()),
        one("one zero block", Ok(""), zeros(1)),
        one("only zero blocks", Ok(""), zeros(20)),
        one("no zero block", Ok("plain:5 644 0:0 0+0"), entry.clone()),
        one("a single zero block at the end", Ok("plain:5 644 0:0 0+0"), [entry.clone(), zeros(1)].concat()),
        one(
            "a single zero block inside",
            Err("single zero block"),
            [entry.clone(), zeros(1), entry.clone()].concat(),
        ),
        one(
            "an archive behind the end",
            Ok("plain:5 644 0:0 0+0"),
            [entry.clone(), zeros(2), entry.clone()].concat(),
        ),
        one("garbage behind the end", Ok("plain:5 644 0:0 0+0"), [entry.clone(), zeros(2), vec![0xff; 700]].concat()),
        one("garbage in place of the end", Err("checksum"), [entry.clone(), vec![0xff; 1024]].concat()),
        one("half a header", Err("truncated"), [&entry[..], &entry[..100]].concat()),
        one("half the data", Err("truncated"), entry[..515].to_vec()),
        one("half the padding", Err("truncated"), entry[..700].to_vec()),
        one("an extension and no entry", Err("truncated"), {
            let mut tar = Tar::default();
            tar.pax(&[("path", b"x")]);
            tar.end()
        }),
    ]
}

/// All of them.
pub(crate) fn all() -> Vec<Doubt> {
    [numbers(), layouts(), extensions(), ends()].into_iter().flatten().collect()
}

#[test]
fn each_is_read_as_expected() {
    for Doubt { what, tar, expected } in all() {
        let seen = list(&tar, 1 << 40);
        match (&seen, expected) {
            (Ok(entries), Ok(expected)) => {
                let seen: Vec<_> = entries.iter().map(described).collect();
                assert_eq!(seen.join(", "), expected, "{what}");
            }
            (Err(error), Err(expected)) => {
                assert!(error.to_string().contains(expected), "{what}: {error}");
                assert_eq!(error.kind(), reflinkd::Kind::BadInput, "{what}: {error}");
            }
            _ => panic!("{what}: {seen:?}, not {expected:?}"),
        }
    }
}
