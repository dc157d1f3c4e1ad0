//! Archives by other writers: GNU tar in all its formats, libarchive's bsdtar, Python's tarfile.

use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;

use reflinkd::layer::Limits;
use rustix::fs::{AtFlags, CWD, FileType, Timespec, Timestamps, XattrFlags};

use super::fixture::{run, scratch};
use super::restored::unpack;
use super::tree::{Tree, assert_same, data_map, read};

/// What a writer and a format of its can say.
struct Format {
    arguments: &'static [&'static str],
    /// Names of more than 100 bytes.
    long: bool,
    /// Devices and FIFOs.
    nodes: bool,
    /// Which parts of a file are holes.
    sparse: bool,
    /// Times to the nanosecond and before 1970, extended attributes.
    exact: bool,
}

const fn format(arguments: &'static [&'static str], [long, nodes, sparse, exact]: [bool; 4]) -> Format {
    Format { arguments, long, nodes, sparse, exact }
}

const GNU_XATTRS: [&str; 2] = ["--xattrs", "--xattrs-include=*"];

fn formats() -> Vec<Format> {
    let posix = |version| [&["tar", "--format=posix", "--sparse", version][..], &GNU_XATTRS].concat().leak();
    vec![
        format(&["tar", "--format=v7"], [false, false, false, false]),
        format(&["tar", "--format=ustar"], [false, true, false, false]),
        format(&["tar", "--format=oldgnu"], [true, true, false, false]),
        format(&["tar", "--format=oldgnu", "--sparse"], [true, true, true, false]),
        format(&["tar", "--format=gnu"], [true, true, false, false]),
        format(&["tar", "--format=gnu", "--sparse"], [true, true, true, false]),
        format(&["tar", "--format=posix", GNU_XATTRS[0], GNU_XATTRS[1]], [true, true, false, true]),
        format(posix("--sparse-version=0.0"), [true, true, true, true]),
        format(posix("--sparse-version=0.1"), [true, true, true, true]),
        format(posix("--sparse-version=1.0"), [true, true, true, true]),
        format(&["bsdtar", "--format=ustar"], [false, true, false, false]),
        format(&["bsdtar", "--format=gnutar"], [true, true, false, false]),
        format(&["bsdtar", "--format=pax"], [true, true, true, true]),
    ]
}

/// A tree with everything that the format can say.
fn source(at: &Path, format: &Format) {
    std::fs::create_dir_all(at.join("dir/sub")).expect("mkdir");
    let sparse = File::create(at.join("dir/sparse")).expect("create");
    sparse.set_len(8 << 20).expect("holes at the end");
    for offset in [1 << 20, 3 << 20, 5 << 20, 6 << 20, 7 << 20] {
        sparse.write_all_at(&[offset.to_string().as_bytes()[0]; 8192], offset).expect("write");
    }
    std::fs::write(at.join("dir/plain"), "x".repeat(1000)).expect("write");
    std::fs::hard_link(at.join("dir/plain"), at.join("dir/sub/link")).expect("link");
    std::os::unix::fs::symlink("../dir/plain", at.join("dir/sub/sym")).expect("symlink");
    std::fs::set_permissions(at.join("dir/plain"), PermissionsExt::from_mode(0o4711)).expect("chmod");
    std::os::unix::fs::chown(at.join("dir"), Some(1234), Some(4321)).expect("these tests need root");
    for name in [&b"\xff\xfe"[..], b"new\nline", b" ", b"-dash", b"a\\b", "\u{fc}".as_bytes(), b"quote\""] {
        std::fs::write(at.join(OsStr::from_bytes(name)), name).expect("write");
    }
    if format.long {
        let long = at.join("n".repeat(120)).join("m".repeat(255));
        std::fs::create_dir_all(&long).expect("mkdir");
        std::fs::write(long.join("file"), "long").expect("write");
        std::os::unix::fs::symlink("t".repeat(300), at.join("long-target")).expect("symlink");
    }
    if format.nodes {
        let node = |name, kind, device| {
            rustix::fs::mknodat(CWD, at.join(name), kind, 0o640.into(), device).expect("mknod");
        };
        node("char", FileType::CharacterDevice, rustix::fs::makedev(4095, 7));
        node("block", FileType::BlockDevice, rustix::fs::makedev(8, 0o777_777));
        node("fifo", FileType::Fifo, 0);
        let sym = |name| at.join("dir/sub").join(name);
        rustix::fs::linkat(CWD, sym("sym"), CWD, sym("sym-2"), AtFlags::empty()).expect("link");
    }
    if format.exact {
        let set = |path: &str, name: &str, value: &[u8]| {
            rustix::fs::lsetxattr(at.join(path), name, value, XattrFlags::CREATE).expect("lsetxattr");
        };
        set("dir/plain", "user.binary", b"a\0=\n");
        set("dir/plain", "security.capability", &super::generate::CAPABILITY);
        set("dir", "trusted.key", b"t");
        set("dir/sub/sym", "trusted.key", b"of the symlink");
        set("char", "trusted.key", b"of the device");
    }
    let times = |seconds, nanoseconds| {
        let time = Timespec { tv_sec: seconds, tv_nsec: nanoseconds };
        Timestamps { last_access: time, last_modification: time }
    };
    for (name, _) in read(at).iter().rev() {
        let time = match format.exact {
            // libarchive 3.6 writes the fraction of a time before 1970 the wrong way round: -5.25 as -6.75.
            true if name == b"-dash" && format.arguments[0] == "bsdtar" => times(-6, 0),
            true if name == b"-dash" => times(-6, 750_000_000),
            true => times(1_600_000_000, 123_456_789),
            false => times(1_600_000_000, 0),
        };
        let path = at.join(OsStr::from_bytes(name));
        rustix::fs::utimensat(CWD, path, &time, AtFlags::SYMLINK_NOFOLLOW).expect("utimensat");
    }
}

/// A tree with everything that any format can say.
pub(crate) fn everything(at: &Path) {
    source(at, &format(&["tar"], [true; 4]));
}

/// The archive of a source, and the source's tree.
fn written(format: &Format, dir: &Path) -> Tree {
    let from = dir.join("from");
    std::fs::create_dir(&from).expect("mkdir");
    source(&from, format);
    let [program, arguments @ ..] = format.arguments else { panic!("no program") };
    let mut command = Command::new(program);
    command.env("LC_ALL", "C.UTF-8").arg("-cf").arg(dir.join("tar")).args(arguments).arg("-C").arg(&from).arg(".");
    // bsdtar has words about names that aren't UTF-8.
    run(command.stderr(std::process::Stdio::null()));
    read(&from)
}

#[test]
fn tar_and_bsdtar_in_every_format() {
    for format in formats() {
        let dir = scratch();
        let expected = written(&format, dir.path());
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        std::fs::create_dir(&to).expect("mkdir");
        let mut stream = File::open(dir.path().join("tar")).expect("open");
        let arguments = format.arguments;
        unpack(&mut stream, &to, &Limits::default(), &|| false).unwrap_or_else(|e| panic!("{arguments:?}: {e}"));
        assert_same(&read(&to), &expected, || format!("{arguments:?}"));
        if format.sparse {
            let [ours, theirs] = [&to, &from].map(|tree| tree.join("dir/sparse"));
            assert_eq!(data_map(&ours), data_map(&theirs), "{arguments:?}");
            assert_eq!(ours.metadata().expect("stat").blocks() * 512, 5 * 8192, "{arguments:?}");
        }
    }
}

/// The archives by all of them, for others to read.
pub(crate) fn archives() -> Vec<(String, Vec<u8>)> {
    let one = |format: &Format| {
        let dir = scratch();
        written(format, dir.path());
        (format.arguments.join(" "), std::fs::read(dir.path().join("tar")).expect("read"))
    };
    formats().iter().map(one).collect()
}

#[test]
fn python_tarfile_in_every_format() {
    const SCRIPT: &str = r"
import sys, tarfile, io
to, form = sys.argv[1], getattr(tarfile, sys.argv[2])
with tarfile.open(to, 'w', format=form) as t:
    for name, kind, extra in [('d', tarfile.DIRTYPE, {}), ('d/file', tarfile.REGTYPE, {'uid': 2097152, 'mode': 0o640}),
                              ('d/' + 'x' * 90 + '/' + 'y' * 90, tarfile.REGTYPE, {}), ('fifo', tarfile.FIFOTYPE, {}),
                              ('s', tarfile.SYMTYPE, {'linkname': 'd/file'}), ('h', tarfile.LNKTYPE, {'linkname': 'd/file'})]:
        i = tarfile.TarInfo(name)
        i.type, i.mtime, i.mode = kind, 12, 0o755
        if form == tarfile.USTAR_FORMAT: extra.pop('uid', None)
        for k, v in extra.items(): setattr(i, k, v)
        data = b'python' if kind == tarfile.REGTYPE else b''
        i.size = len(data)
        t.addfile(i, io.BytesIO(data))
";
    for format in ["USTAR_FORMAT", "GNU_FORMAT", "PAX_FORMAT"] {
        let dir = scratch();
        let (to, tar) = (dir.path().join("to"), dir.path().join("tar"));
        std::fs::create_dir(&to).expect("mkdir");
        run(Command::new("python3").arg("-c").arg(SCRIPT).arg(&tar).arg(format));
        let mut stream = File::open(&tar).expect("open");
        let summary = unpack(&mut stream, &to, &Limits::default(), &|| false).expect(format);
        assert_eq!(summary.bytes, 12);
        let tree = read(&to);
        let file = &tree[&b"d/file"[..]];
        assert_eq!((file.mode, file.mtime), (0o640, (12, 0)));
        assert_eq!(file.owner.0, if format == "USTAR_FORMAT" { 0 } else { 2_097_152 });
        assert_eq!(tree[&b"h"[..]].first, b"d/file");
        assert!(tree.contains_key(format!("d/{}/{}", "x".repeat(90), "y".repeat(90)).as_bytes()));
        // The long file's parent has no entry: one directory was implied.
        assert_eq!(summary.entries, 7);
    }
}
