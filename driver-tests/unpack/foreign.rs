//! Archives by other writers: GNU tar in all its formats, Python's tarfile.

use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;

use reflinkd::layer::{Limits, unpack};

use super::fixture::{run, scratch};
use super::tree::{assert_same, read};

/// A file of 8 MiB with data at its start, in the middle and at its end.
fn sparse_file(path: &Path) {
    let file = std::fs::File::create(path).expect("create");
    for offset in [0, 1 << 20, 3 << 20, 5 << 20, 6 << 20, (8 << 20) - 4096] {
        file.write_all_at(&[offset.to_string().as_bytes()[0]; 4096], offset).expect("write");
    }
}

fn source(at: &Path, long_names: bool) {
    std::fs::create_dir_all(at.join("dir/sub")).expect("mkdir");
    sparse_file(&at.join("dir/sparse"));
    std::fs::write(at.join("dir/plain"), "x".repeat(1000)).expect("write");
    std::fs::hard_link(at.join("dir/plain"), at.join("dir/sub/link")).expect("link");
    std::os::unix::fs::symlink("../dir/plain", at.join("dir/sub/sym")).expect("symlink");
    std::fs::set_permissions(at.join("dir/plain"), PermissionsExt::from_mode(0o4711)).expect("chmod");
    std::os::unix::fs::chown(at.join("dir"), Some(1234), Some(4321)).expect("these tests need root");
    if long_names {
        let long = at.join("n".repeat(120)).join("m".repeat(200));
        std::fs::create_dir_all(&long).expect("mkdir");
        std::fs::write(long.join("file"), "long").expect("write");
        std::os::unix::fs::symlink("t".repeat(300), at.join("long-target")).expect("symlink");
    }
    for path in ["dir/sub", "dir/plain", "dir/sparse", "dir", ""] {
        let file = std::fs::File::open(at.join(path)).expect("open");
        file.set_modified(std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_600_000_000)).expect("utimes");
    }
}

#[test]
fn gnu_tar_in_every_format() {
    for (arguments, long_names) in [
        (&["--format=v7"][..], false),
        (&["--format=ustar"], false),
        (&["--format=oldgnu"], true),
        (&["--format=gnu"], true),
        (&["--format=gnu", "--sparse"], true),
        (&["--format=posix", "--xattrs"], true),
        (&["--format=posix", "--sparse", "--sparse-version=0.0"], true),
        (&["--format=posix", "--sparse", "--sparse-version=0.1"], true),
        (&["--format=posix", "--sparse", "--sparse-version=1.0"], true),
    ] {
        let dir = scratch();
        let (from, to, tar) = (dir.path().join("from"), dir.path().join("to"), dir.path().join("tar"));
        source(&from, long_names);
        std::fs::create_dir(&to).expect("mkdir");
        let mtime = if arguments[0] == "--format=posix" { "--mtime=@1600000000.5" } else { "--mtime=@1600000000" };
        run(Command::new("tar").arg("-cf").arg(&tar).args(arguments).arg(mtime).arg("-C").arg(&from).arg("."));
        let mut expected = read(&from);
        for seen in expected.values_mut() {
            seen.mtime = (1_600_000_000, if arguments[0] == "--format=posix" { 500_000_000 } else { 0 });
        }
        let mut stream = std::fs::File::open(&tar).expect("open");
        unpack(&mut stream, &to, &Limits::default(), &|| false).unwrap_or_else(|e| panic!("{arguments:?}: {e}"));
        assert_same(&read(&to), &expected, || format!("{arguments:?}"));
        let blocks = to.join("dir/sparse").metadata().expect("stat").blocks();
        if arguments.contains(&"--sparse") {
            assert!(blocks * 512 < 1 << 20, "{arguments:?}: the sparse file takes {blocks} blocks");
        }
    }
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
        let mut stream = std::fs::File::open(&tar).expect("open");
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

/// Nothing yet.
pub(crate) fn archives() -> Vec<(String, Vec<u8>)> {
    Vec::new()
}
