//! `cp`: what `docker cp` documents, case by case, and what is kept.

use std::collections::BTreeMap;
use std::ffi::{CString, OsStr};
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, chown, lchown, symlink};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use reflinkd::sys::fiemap;
use rustix::fs::{CWD, FileType, Mode, Timespec, Timestamps, XattrFlags, lsetxattr, makedev, mknodat, utimensat};
use rustix::process::{Pid, Signal, kill_process};

use crate::support::image::tar_of;
use crate::support::{
    EntryFacts, MB, MIB, Process, arg, random_bytes, reflinkd_command, run, tree_digest, write_random,
};
use crate::world::{Ground, World};

on_btrfs_and_xfs! {
    a_file_goes_where_dockers_table_has_it
    a_directory_goes_where_dockers_table_has_it
    links_are_named_or_followed
    all_that_a_tree_has_is_kept
    labels_of_selinux_stay_behind
    files_share_their_blocks_on_one_filesystem
    owners_are_whose_they_are_said_to_be
    a_read_only_container_is_only_copied_from
    a_snapshot_is_only_copied_from
    a_tar_is_extracted_as_it_is
    a_tar_is_written_of_what_is_there
    an_interrupted_copy_leaves_no_half_of_a_file
    a_full_disk_leaves_what_was_there
}

/// A container to copy to, and a directory on the host.
struct Copying {
    world: World,
}

impl Copying {
    fn on(ground: Ground) -> Self {
        let world = World::on(ground).with_base();
        world.ok(&["create", "--image", "base", "web1"]);
        fs::write(world.files.path().join("file"), "new").expect("write");
        fs::create_dir_all(world.files.path().join("dir/sub")).expect("mkdir");
        fs::write(world.files.path().join("dir/sub/b"), "b").expect("write");
        Self { world }
    }

    /// The arguments with `@` at the beginning for the host's directory.
    fn args(&self, args: &[&str]) -> Vec<String> {
        let host = arg(self.world.files.path());
        let args = args.iter().map(|arg| match arg.strip_prefix('@') {
            Some(below) => format!("{host}{below}"),
            None => (*arg).to_string(),
        });
        std::iter::once("cp".to_string()).chain(args).collect()
    }

    fn cp(&self, args: &[&str]) {
        let args = self.args(args);
        assert_eq!(self.world.ok(&args.iter().map(String::as_str).collect::<Vec<_>>()), "", "cp prints nothing");
    }

    /// It must fail with this, and with a hint.
    fn refuses(&self, args: &[&str], why: &str) {
        let args = self.args(args);
        let error = self.world.fails(&args.iter().map(String::as_str).collect::<Vec<_>>());
        assert!(error.starts_with("reflinkd: cannot ") && error.contains(why), "{args:?}: {error}");
        assert!(error.contains("hint: "), "{args:?}: {error}");
    }

    fn inside(&self, path: &str) -> std::path::PathBuf {
        self.world.tree("web1").join(path)
    }

    fn outside(&self, path: &str) -> std::path::PathBuf {
        self.world.files.path().join(path)
    }

    /// Extract a tar, with this answer.
    fn extract(&self, tar: &[u8], to: &str) -> (Option<i32>, String) {
        let mut command = reflinkd_command(self.world.root(), &["cp", "-", to]);
        let mut child = command.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("spawn");
        // It may have refused before it read everything.
        let _ = child.stdin.take().expect("piped").write_all(tar);
        let output = child.wait_with_output().expect("wait");
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

fn text(path: impl AsRef<Path>) -> String {
    let path = path.as_ref();
    fs::read_to_string(path).unwrap_or_else(|e| panic!("read {}: {e}", path.display()))
}

/// What is in a directory, sorted.
fn names(path: impl AsRef<Path>) -> Vec<String> {
    let entries =
        fs::read_dir(path).expect("read").map(|e| e.expect("read").file_name().into_string().expect("UTF-8"));
    let mut names: Vec<_> = entries.collect();
    names.sort();
    names
}

fn a_file_goes_where_dockers_table_has_it(ground: Ground) {
    let c = Copying::on(ground);
    c.cp(&["@/file", "web1:/etc/fresh"]);
    assert_eq!(text(c.inside("etc/fresh")), "new");
    c.cp(&["@/file", "web1:etc/passwd"]);
    assert_eq!(text(c.inside("etc/passwd")), "new", "overwritten; a path without / starts at the root");
    c.cp(&["@/file", "web1:/etc"]);
    c.cp(&["@/file", "web1:/bin/"]);
    assert_eq!((text(c.inside("etc/file")), text(c.inside("bin/file"))), ("new".into(), "new".into()));
    c.refuses(&["@/file", "web1:/none/"], "no such directory: none");
    c.refuses(&["@/file", "web1:/none/x"], "no such directory: /none");
    c.refuses(&["@/file", "web1:/etc/new/"], "not a directory");
    c.refuses(&["@/file/", "web1:/etc"], "not a directory");
    c.refuses(&["@/nope", "web1:/etc"], "no such file");
    c.refuses(&["@/file", "nope:/etc"], "there is no container nope");
    c.refuses(&["@/file", "web1:"], "there is no path after web1:");
    fs::create_dir(c.inside("bin/taken")).expect("mkdir");
    fs::write(c.outside("taken"), "").expect("write");
    c.refuses(&["@/taken", "web1:/bin"], "cannot overwrite a directory");
    let device = c.inside("bin/null");
    mknodat(CWD, &device, FileType::CharacterDevice, Mode::RUSR, makedev(1, 3)).expect("mknod");
    c.refuses(&["@/file", "web1:/bin/null"], "a device");
    // And out.
    c.cp(&["web1:/etc/new", "@/out"]);
    c.cp(&["web1:/etc/new", "@/dir"]);
    assert_eq!((text(c.outside("out")), text(c.outside("dir/new"))), ("new\n".into(), "new\n".into()));
    c.refuses(&["web1:/etc/new", "@/none/x"], "no such directory");
    c.refuses(&["web1:/etc/nope", "@"], "no such file");
    let error = c.world.fails(&["cp", arg(&c.outside("file")), arg(&c.outside("x"))]);
    assert!(error.contains("neither SRC nor DEST is in a container"), "{error}");
    // What has a colon and is on the host.
    fs::write(c.outside("web1:x"), "colon").expect("write");
    c.cp(&["@/web1:x", "web1:/etc/colon"]);
    assert_eq!(text(c.inside("etc/colon")), "colon");
    assert!(names(c.inside("etc")).iter().all(|name| !name.starts_with(".reflinkd")));
}

fn a_directory_goes_where_dockers_table_has_it(ground: Ground) {
    let c = Copying::on(ground);
    c.cp(&["@/dir", "web1:/fresh"]);
    c.cp(&["@/dir", "web1:/etc"]);
    c.cp(&["@/dir/.", "web1:/bin"]);
    c.cp(&["@/dir/.", "web1:/fresh2"]);
    for copied in ["fresh/sub/b", "etc/dir/sub/b", "bin/sub/b", "fresh2/sub/b"] {
        assert_eq!(text(c.inside(copied)), "b", "{copied}");
    }
    assert_eq!(text(c.inside("bin/sh")), "#!", "directories merge");
    assert_eq!(names(c.inside("fresh")), ["sub"]);
    c.refuses(&["@/dir", "web1:/etc/new"], "cannot copy a directory to a file");
    c.refuses(&["@/dir/.", "web1:/etc/new"], "cannot copy a directory to a file");
    c.refuses(&["@/dir", "web1:/none/x"], "no such directory: /none");
    fs::write(c.inside("bin/dir"), "").expect("write");
    c.refuses(&["@/dir", "web1:/bin"], "cannot overwrite something that is no directory");
    c.refuses(&["web1:/etc", "web1:/etc/dir"], "into itself");
    c.refuses(&["web1:/", "web1:/etc"], "into itself");
    // From one container to another, and out.
    c.world.ok(&["create", "--image", "base", "web2"]);
    c.cp(&["web1:/fresh", "web2:/etc"]);
    assert_eq!(text(c.world.tree("web2").join("etc/fresh/sub/b")), "b");
    c.cp(&["web1:/fresh/.", "@/dir"]);
    c.cp(&["web1:/fresh", "@/out"]);
    assert_eq!(
        (names(c.outside("dir")), names(c.outside("out"))),
        (vec!["sub".to_string()], vec!["sub".to_string()])
    );
    c.cp(&["web1:/", "@/all"]);
    assert_eq!(names(c.outside("all")), names(c.inside("")));
}

fn links_are_named_or_followed(ground: Ground) {
    let c = Copying::on(ground);
    symlink("/etc", c.inside("absolute")).expect("symlink");
    symlink("../etc/new", c.inside("bin/relative")).expect("symlink");
    symlink("/etc/to-be", c.inside("dangling")).expect("symlink");
    for (link, target) in [("absolute", "/etc"), ("bin/relative", "../etc/new"), ("dangling", "/etc/to-be")] {
        c.cp(&[&format!("web1:/{link}"), "@/link"]);
        assert_eq!(fs::read_link(c.outside("link")).expect("a link"), Path::new(target));
        fs::remove_file(c.outside("link")).expect("unlink");
    }
    c.cp(&["-L", "web1:/bin/relative", "@/"]);
    assert_eq!(text(c.outside("relative")), "new\n", "under the link's name");
    c.cp(&["web1:/absolute/", "@/followed"]);
    assert_eq!(text(c.outside("followed/new")), "new\n");
    c.refuses(&["-L", "web1:/dangling", "@"], "no such file");
    // At the destination they are followed, inside the container.
    c.cp(&["@/file", "web1:/dangling"]);
    c.cp(&["@/file", "web1:/bin/relative"]);
    c.cp(&["@/file", "web1:/absolute"]);
    for written in ["etc/to-be", "etc/new", "etc/file"] {
        assert_eq!(text(c.inside(written)), "new", "{written}");
    }
    assert!(c.inside("bin/relative").is_symlink() && c.inside("absolute").is_symlink());
    // But not what is in a directory that a tree is copied to.
    fs::create_dir_all(c.outside("tree/absolute")).expect("mkdir");
    c.refuses(&["@/tree/.", "web1:/"], "cannot overwrite something that is no directory");
    fs::write(c.outside("dir/relative"), "").expect("write");
    c.cp(&["@/dir/.", "web1:/bin"]);
    assert!(!c.inside("bin/relative").is_symlink(), "replaced");
    assert_eq!(text(c.inside("etc/new")), "new", "and not written through");
}

/// As tree_digest has it, but for what XFS stores of ACLs and shows a second time.
fn facts_of(root: &Path) -> BTreeMap<Vec<u8>, EntryFacts> {
    let mut all = tree_digest(root);
    for facts in all.values_mut() {
        facts.xattrs.retain(|name, _| !name.starts_with(b"trusted.SGI_ACL_"));
    }
    all
}

/// Two trees are alike, entry by entry.
fn same(copy: &Path, original: &Path) {
    let (copy, original) = (facts_of(copy), facts_of(original));
    for (path, facts) in &original {
        assert_eq!(copy.get(path), Some(facts), "/{}", path.escape_ascii());
    }
    assert_eq!(copy.len(), original.len());
}

/// A tar with an entry that would climb.
fn climbing() -> Vec<u8> {
    let mut tar = tar_of(&[("x", b"")]);
    let mut header = tar::Header::new_gnu();
    header.set_size(0);
    header.set_mode(0o644);
    header.as_old_mut().name[..6].copy_from_slice(b"../out");
    header.set_cksum();
    tar[..512].copy_from_slice(header.as_bytes());
    tar
}

const ACL: &[u8] = &[
    2, 0, 0, 0, 1, 0, 6, 0, 255, 255, 255, 255, 2, 0, 5, 0, 7, 0, 0, 0, 4, 0, 4, 0, 255, 255, 255, 255, 16, 0, 5, 0,
    255, 255, 255, 255, 32, 0, 4, 0, 255, 255, 255, 255,
];
const CAPABILITY: &[u8] = &[1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// One of everything below `at`.
fn one_of_everything(at: &Path) {
    let set = |path: &str, name: &str, value: &[u8]| {
        lsetxattr(at.join(path), CString::new(name).expect("no NUL"), value, XattrFlags::empty()).expect("setxattr");
    };
    fs::create_dir_all(at.join("d/e")).expect("mkdir");
    fs::write(at.join("d/file"), "content").expect("write");
    fs::hard_link(at.join("d/file"), at.join("second")).expect("link");
    chown(at.join("d/file"), Some(5), Some(6)).expect("chown");
    fs::set_permissions(at.join("d/file"), PermissionsExt::from_mode(0o6755)).expect("chmod");
    fs::write(at.join("acl"), "").expect("write");
    set("acl", "system.posix_acl_access", ACL);
    set("acl", "user.note", b"yes");
    set("d/file", "security.capability", CAPABILITY);
    set("d", "system.posix_acl_default", ACL);
    fs::write(at.join("d/e/later"), "made where ACLs are inherited").expect("write");
    symlink("../nowhere", at.join("d/link")).expect("symlink");
    lchown(at.join("d/link"), Some(7), Some(8)).expect("chown");
    set("d/link", "trusted.note", b"of a link");
    for (name, kind, device) in [
        ("null", FileType::CharacterDevice, makedev(1, 3)),
        ("loop", FileType::BlockDevice, makedev(7, 0)),
        ("fifo", FileType::Fifo, 0),
    ] {
        mknodat(CWD, at.join(name), kind, Mode::from_raw_mode(0o640), device).expect("mknod");
    }
    set("null", "trusted.note", b"of a device");
    let holes = File::create(at.join("holes")).expect("create");
    holes.set_len(8 * MIB).and_then(|()| holes.write_all_at(b"data", 4 * MIB)).expect("write");
    fs::set_permissions(at.join("d/e"), PermissionsExt::from_mode(0o2511)).expect("chmod");
    let time = |s, ns| Timespec { tv_sec: s, tv_nsec: ns };
    let times = Timestamps { last_access: time(3, 4), last_modification: time(1_234_567_890, 123_456_789) };
    for path in ["d/file", "d/link", "fifo", "null", "holes", "acl", "d/e", "d", ""] {
        utimensat(CWD, at.join(path), &times, rustix::fs::AtFlags::SYMLINK_NOFOLLOW).expect("utimens");
    }
}

/// As with `docker cp`: what is copied has the label of where it is, else a container couldn't read what it was given.
fn labels_of_selinux_stay_behind(ground: Ground) {
    const LABEL: &str = "security.selinux";
    let c = Copying::on(ground);
    let host = c.outside("host");
    fs::create_dir(&host).expect("mkdir");
    one_of_everything(&host);
    let all = facts_of(&host);
    let label = |path: &Path, label: &str| {
        lsetxattr(path, LABEL, label.as_bytes(), XattrFlags::empty()).expect("setxattr");
    };
    for path in all.keys() {
        label(&host.join(OsStr::from_bytes(path)), "system_u:object_r:user_home_t:s0\0");
    }
    c.cp(&["-a", arg(&host), "web1:/in"]);
    assert_eq!(facts_of(&c.inside("in")), all);
    label(&c.inside("in/d"), "system_u:object_r:container_file_t:s0\0");
    c.cp(&["-a", "web1:/in", arg(&c.outside("out"))]);
    assert_eq!(facts_of(&c.outside("out")), all);
    // What is there already keeps its own.
    c.cp(&["-a", &format!("{}/.", host.display()), "web1:/in"]);
    let merged = facts_of(&c.inside("in"));
    let with = merged.iter().filter(|(_, facts)| facts.xattrs.contains_key(LABEL.as_bytes()));
    assert_eq!(with.map(|(path, _)| &path[..]).collect::<Vec<_>>(), [b"d"]);
}

fn all_that_a_tree_has_is_kept(ground: Ground) {
    let c = Copying::on(ground);
    // On the store's filesystem, and on another one.
    for (n, host) in [c.world.fs.path().join("one"), c.outside("one")].iter().enumerate() {
        fs::create_dir(host).expect("mkdir");
        one_of_everything(host);
        let all = facts_of(host);
        assert!(all.len() > 10);
        let (inside, outside) = (format!("web1:/copy{n}"), format!("{}-out", host.display()));
        c.cp(&["-a", arg(host), &inside]);
        assert_eq!(facts_of(&c.inside(&format!("copy{n}"))), all);
        // A second time all is there: everything is replaced, or merges.
        c.cp(&["-a", &format!("{}/.", host.display()), &inside]);
        let again = facts_of(&c.inside(&format!("copy{n}")));
        assert_eq!(again.keys().collect::<Vec<_>>(), all.keys().collect::<Vec<_>>());
        assert!(again.iter().filter(|(path, _)| !path.is_empty()).all(|(path, facts)| *facts == all[path]));
        c.cp(&["-a", &format!("web1:/copy{n}"), &outside]);
        let mut back = facts_of(Path::new(&outside));
        // The copy's top was written to when it was merged with.
        let top = all[&b""[..]].clone();
        back.insert(Vec::new(), top);
        assert_eq!(back, all);
        let holes = fs::metadata(Path::new(&outside).join("holes")).expect("stat");
        assert!(holes.blocks() * 512 < MIB, "holes stay: {}", holes.blocks());
    }
}

fn files_share_their_blocks_on_one_filesystem(ground: Ground) {
    let c = Copying::on(ground);
    let host = c.world.fs.path().join("big");
    write_random(&host, 8 * MB);
    fs::create_dir(c.world.fs.path().join("tree")).expect("mkdir");
    fs::copy(&host, c.world.fs.path().join("tree/other")).expect("copy");
    let host_tree = c.world.fs.path().join("tree");
    c.cp(&[arg(&host), "web1:/big"]);
    c.cp(&[arg(&host_tree), "web1:/"]);
    c.world.ok(&["create", "--image", "base", "web2"]);
    c.cp(&["web1:/big", "web2:/"]);
    let out = c.world.fs.path().join("out");
    c.cp(&["web2:/big", arg(&out)]);
    for copy in [c.inside("big"), c.inside("tree/other"), c.world.tree("web2").join("big"), out] {
        let extents = fiemap::extents(&File::open(&copy).expect("open"), true).expect("fiemap");
        assert!(!extents.is_empty() && extents.iter().all(|e| e.shared), "{}: {extents:?}", copy.display());
        assert!(fs::metadata(&copy).expect("stat").len() >= 8 * MB);
    }
    // From elsewhere they are copied.
    fs::write(c.outside("far"), random_bytes(MB)).expect("write");
    c.cp(&["@/far", "web1:/far"]);
    let extents = fiemap::extents(&File::open(c.inside("far")).expect("open"), true).expect("fiemap");
    assert!(!extents.is_empty() && extents.iter().all(|e| !e.shared), "{extents:?}");
    assert!(fs::read(c.inside("far")).expect("read") == fs::read(c.outside("far")).expect("read"));
}

fn owners_are_whose_they_are_said_to_be(ground: Ground) {
    let c = Copying::on(ground);
    let facts = |path: &Path| {
        let stat = fs::symlink_metadata(path).expect("stat");
        (stat.uid(), stat.gid(), stat.mode() & 0o7777)
    };
    chown(c.outside("dir"), Some(1000), Some(1001)).expect("chown");
    let file = c.outside("dir/sub/b");
    chown(&file, Some(1000), Some(0)).expect("chown");
    fs::set_permissions(&file, PermissionsExt::from_mode(0o6755)).expect("chmod");
    c.cp(&["@/dir", "web1:/root"]);
    c.cp(&["-a", "@/dir", "web1:/kept"]);
    assert_eq!(facts(&c.inside("root")).0, 0);
    assert_eq!(facts(&c.inside("root/sub/b")), (0, 0, 0o2755), "set-user-ID spoke of another user");
    assert_eq!(facts(&c.inside("kept/sub/b")), (1000, 0, 0o6755));
    assert_eq!((facts(&c.inside("kept")).0, facts(&c.inside("kept")).1), (1000, 1001));
    c.cp(&["web1:/kept", "@/mine"]);
    c.cp(&["-a", "web1:/kept", "@/theirs"]);
    assert_eq!(facts(&c.outside("mine/sub/b")), (0, 0, 0o2755));
    assert_eq!(facts(&c.outside("theirs/sub/b")), (1000, 0, 0o6755));
    // A directory's set-group-ID and default ACL don't reach what is copied into it.
    let shared = c.inside("shared");
    fs::create_dir(&shared).expect("mkdir");
    chown(&shared, None, Some(77)).expect("chown");
    fs::set_permissions(&shared, PermissionsExt::from_mode(0o2775)).expect("chmod");
    lsetxattr(&shared, "system.posix_acl_default", ACL, XattrFlags::empty()).expect("setxattr");
    c.cp(&["@/file", "web1:/shared"]);
    let copy = &facts_of(&shared)[&b"file"[..]];
    assert_eq!((copy.gid, copy.mode, copy.xattrs.len()), (0, 0o644, 0), "{copy:?}");
}

fn a_read_only_container_is_only_copied_from(ground: Ground) {
    let c = Copying::on(ground);
    c.world.ok(&["create", "--read-only", "--image", "base", "view"]);
    c.cp(&["view:/etc", "@/out"]);
    assert_eq!(text(c.outside("out/new")), "new\n");
    c.refuses(&["@/file", "view:/etc"], "container view is read-only");
    let (status, error) = c.extract(&tar_of(&[("x", b"")]), "view:/etc");
    assert!(status == Some(1) && error.contains("container view is read-only"), "{error}");
    // Also after somebody took the mount away.
    run("umount", &[arg(&c.world.tree("view"))]);
    c.cp(&["view:/etc/new", "web1:/bin"]);
    assert_eq!(text(c.inside("bin/new")), "new\n");
}

fn a_snapshot_is_only_copied_from(ground: Ground) {
    let c = Copying::on(ground);
    c.world.ok(&["snapshot", "web1", "before"]);
    c.cp(&["@/file", "web1:/etc/new"]);
    c.cp(&["web1@before:/etc/new", "@/out"]);
    c.cp(&["web1@before:/etc/new", "web1:/etc/again"]);
    assert_eq!((text(c.outside("out")), text(c.inside("etc/again"))), ("new\n".into(), "new\n".into()));
    c.refuses(&["@/file", "web1@before:/etc"], "snapshots stay as they are");
    c.refuses(&["web1@never:/etc", "@"], "has no snapshot never");
}

fn a_tar_is_extracted_as_it_is(ground: Ground) {
    let c = Copying::on(ground);
    let extracted = |tar: &[u8], to: &str| {
        let (status, error) = c.extract(tar, to);
        assert_eq!((status, error.as_str()), (Some(0), ""));
    };
    let before = fs::metadata(c.inside("etc")).expect("stat").mtime();
    extracted(&tar_of(&[("./", b""), ("q/", b""), ("q/.wh.new", b"kept"), (".wh..wh..opq", b"too")]), "web1:/etc");
    assert_eq!((text(c.inside("etc/q/.wh.new")), text(c.inside("etc/.wh..wh..opq"))), ("kept".into(), "too".into()));
    assert_eq!(text(c.inside("etc/new")), "new\n", "nothing is hidden");
    assert!(
        fs::metadata(c.inside("etc")).expect("stat").mtime() > before,
        "a directory of the container was changed"
    );
    assert_eq!(fs::metadata(c.inside("etc/q")).expect("stat").mtime(), 1_700_000_000, "one of the tar has its time");
    // Compressed; over what is there; missing parents.
    let gzip = {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&tar_of(&[("passwd", b"over"), ("a/b/c", b"deep")])).expect("gzip");
        gzip.finish().expect("gzip")
    };
    extracted(&gzip, "web1:/etc/");
    assert_eq!((text(c.inside("etc/passwd")), text(c.inside("etc/a/b/c"))), ("over".into(), "deep".into()));
    // As GNU tar writes it, with owners, links and attributes; owners are the tar's.
    let tree = c.outside("everything");
    fs::create_dir(&tree).expect("mkdir");
    one_of_everything(&tree);
    fs::remove_file(tree.join("holes")).expect("unlink");
    let output = Command::new("tar")
        .args(["--format=posix", "--xattrs", "--xattrs-include=*", "--acls", "-c", "."])
        .current_dir(&tree)
        .output()
        .expect("tar");
    assert!(output.status.success(), "{output:?}");
    fs::create_dir(c.inside("into")).expect("mkdir");
    extracted(&output.stdout, "web1:/into");
    let (mut there, mut all) = (facts_of(&c.inside("into")), facts_of(&tree));
    for digest in [&mut there, &mut all] {
        digest.remove(&b""[..]).expect("the directory itself is left alone");
    }
    assert_eq!(there, all);
    // Directories and other things don't replace each other, and links in it are followed in the container.
    for (tar, why) in [
        (tar_of(&[("passwd/", b"")]), "entry \"passwd/\": cannot overwrite something that is no directory"),
        (tar_of(&[("q", b"")]), "entry \"q\": cannot overwrite a directory"),
        (climbing(), "name leaves the root"),
    ] {
        let (status, error) = c.extract(&tar, "web1:/etc");
        assert!(
            status == Some(1) && error.contains(why) && error.contains("cannot extract a tar to web1:/etc"),
            "{error}"
        );
    }
    symlink("/etc", c.inside("bin/link")).expect("symlink");
    extracted(&tar_of(&[("link/through", b"x")]), "web1:/bin");
    assert_eq!(text(c.inside("etc/through")), "x");
    for to in ["web1:/etc/new", "web1:/none"] {
        let (status, error) = c.extract(&tar_of(&[("x", b"")]), to);
        assert!(status == Some(1) && error.contains("a tar is extracted to a directory"), "{error}");
        assert!(error.contains("hint: "), "{error}");
    }
    let mut cut = tar_of(&[("etc-file", &random_bytes(100_000))]);
    cut.truncate(50_000);
    let (status, error) = c.extract(&cut, "web1:/etc");
    assert!(status == Some(1) && error.contains("truncated"), "{error}");
    assert!(names(c.inside("etc")).iter().all(|name| name != "etc-file" && !name.starts_with(".reflinkd")));
}

fn a_tar_is_written_of_what_is_there(ground: Ground) {
    let c = Copying::on(ground);
    let tar = |args: &[&str]| {
        let args: Vec<_> = std::iter::once("cp").chain(args.iter().copied()).chain(["-"]).collect();
        let output = reflinkd_command(c.world.root(), &args).stdin(Stdio::null()).output().expect("run");
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    };
    let listed = |args: &[&str]| {
        let tar = tar(args);
        let names = |entry: tar::Entry<'_, _>| String::from_utf8(entry.path_bytes().into_owned()).expect("UTF-8");
        let mut archive = tar::Archive::new(&tar[..]);
        let names: Vec<_> = archive.entries().expect("a tar").map(|entry| names(entry.expect("an entry"))).collect();
        names
    };
    one_of_everything(&c.inside("bin"));
    fs::remove_file(c.inside("bin/holes")).expect("unlink");
    symlink("/etc/new", c.inside("link")).expect("symlink");
    // Read by GNU tar, it is what it was.
    let out = c.outside("extracted");
    fs::create_dir(&out).expect("mkdir");
    let mut gnu = Command::new("tar")
        .args(["--xattrs", "--xattrs-include=*", "--numeric-owner", "-xp", "-C", arg(&out)])
        .stdin(Stdio::piped())
        .spawn()
        .expect("tar");
    gnu.stdin.take().expect("piped").write_all(&tar(&["web1:/bin"])).expect("write");
    assert!(gnu.wait().expect("wait").success());
    same(&out.join("bin"), &c.inside("bin"));
    // Names are as in what a copy would make.
    assert_eq!(listed(&["web1:/etc"]), ["etc/", "etc/new", "etc/passwd"]);
    assert_eq!(listed(&["web1:/etc/."]), ["./", "new", "passwd"]);
    assert_eq!(listed(&["web1:/etc/new"]), ["new"]);
    assert_eq!(listed(&["web1:/link"]), ["link"]);
    assert_eq!(listed(&["-L", "web1:/link"]), ["link"]);
    assert_eq!(listed(&["web1:/bin/fifo"]), ["fifo"]);
    assert!(listed(&["web1:/"]).contains(&"etc/new".to_string()));
    // From one container to another through a pipe.
    c.world.ok(&["create", "--image", "base", "web2"]);
    let (status, error) = c.extract(&tar(&["web1:/bin"]), "web2:/etc");
    assert_eq!((status, error.as_str()), (Some(0), ""));
    same(&c.world.tree("web2").join("etc/bin"), &c.inside("bin"));
    c.refuses(&["web1:/nope", "-"], "no such file");
}

fn an_interrupted_copy_leaves_no_half_of_a_file(ground: Ground) {
    let c = Copying::on(ground);
    let tar = tar_of(&[("whole", b"whole"), ("half", &random_bytes(8 * MB))]);
    let mut command = reflinkd_command(c.world.root(), &["cp", "-", "web1:/etc"]);
    let mut copy = Process::spawn(command.stdin(Stdio::piped()).stderr(Stdio::null()));
    let mut stdin = copy.child().stdin.take().expect("piped");
    stdin.write_all(&tar[..tar.len() / 2]).expect("write");
    // It waits for the rest, with half of the file beside its place.
    let aside = || names(c.inside("etc")).into_iter().any(|name| name.starts_with(".reflinkd"));
    let begun = Instant::now();
    while !(aside() && c.inside("etc/whole").exists()) {
        assert!(begun.elapsed() < Duration::from_secs(60), "nothing was written");
        std::thread::sleep(Duration::from_millis(5));
    }
    kill_process(Pid::from_raw(copy.id().try_into().expect("pid")).expect("pid"), Signal::INT).expect("kill");
    // It may have ended already.
    let _ = stdin.write_all(&tar[tar.len() / 2..]);
    drop(stdin);
    assert_eq!(copy.child().wait().expect("wait").code(), Some(130));
    assert!(!c.inside("etc/half").exists() && !aside());
    assert_eq!(text(c.inside("etc/whole")), "whole", "what was done stays");
}

fn a_full_disk_leaves_what_was_there(ground: Ground) {
    let c = Copying::on(ground);
    let old = b"what was there";
    let name = match ground.holds_limits() {
        true => {
            c.world.ok(&["create", "--image", "base", "--size-limit", "20MB", "small"]);
            "small"
        }
        false => {
            let free = rustix::fs::statvfs(c.world.fs.path()).expect("statvfs");
            let ballast = (free.f_bavail * free.f_frsize).saturating_sub(40 * MB);
            run("fallocate", &["-l", &ballast.to_string(), arg(&c.world.fs.path().join("ballast"))]);
            "web1"
        }
    };
    let tree = c.world.tree(name);
    fs::write(tree.join("etc/data"), old).expect("write");
    let large = random_bytes(80 * MB);
    fs::write(c.outside("data"), &large).expect("write");
    let before = names(tree.join("etc"));
    for destination in ["etc/data", "etc", "etc/other"] {
        let to = format!("{name}:/{destination}");
        let error = c.world.fails(&["cp", arg(&c.outside("data")), &to]);
        assert!(error.contains("No space left") || error.contains("quota exceeded"), "{error}");
        assert!(error.contains(&format!("to {to}: ")), "{error}");
    }
    let (status, error) = c.extract(&tar_of(&[("data", &large)]), &format!("{name}:/etc"));
    assert_eq!(status, Some(1), "{error}");
    assert!(error.contains("entry \"data\"") && (error.contains("No space") || error.contains("quota")), "{error}");
    assert_eq!(names(tree.join("etc")), before);
    assert_eq!(fs::read(tree.join("etc/data")).expect("read"), old);
}
