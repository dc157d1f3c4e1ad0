//! Random layers that mean the same in whatever order their markers stand.
//!
//! What is left out, because a stream can't know it: a marker reached through a path that the same layer
//! turns into something else; a path through a symlink that the same layer hides.

use super::model::{Meta, Model, Op, Path};
use super::random::Random;
use super::tree::{What, Xattrs};
use super::writer::{Raw, Style, Tar};

/// `vfs_cap_data`, revision 2: cap_net_bind_service, permitted and effective (linux/capability.h).
pub(crate) const CAPABILITY: [u8; 20] = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

fn names() -> Vec<Vec<u8>> {
    let mut names: Vec<Vec<u8>> = ["a", "b", "c", "usr", "bin", "lib", "sp ace\n"].map(Into::into).to_vec();
    names.push(b"\xff\xfe=".to_vec());
    names.push([b'n'; 200].to_vec());
    names
}

fn path(random: &mut Random) -> Path {
    let names = names();
    (0..=random.below(4)).map(|_| random.pick(&names)).collect()
}

fn meta(random: &mut Random, what: &What) -> Meta {
    let mut xattrs = Xattrs::new();
    let plain = matches!(what, What::Dir | What::File(_));
    if plain && random.one_in(4) {
        xattrs.insert(b"user.key".to_vec(), random.pick(&[&b""[..], b"v\0=\n", b"value"]).to_vec());
    }
    if random.one_in(5) {
        xattrs.insert(b"trusted.key".to_vec(), b"t".to_vec());
    }
    if matches!(what, What::File(_)) && random.one_in(6) {
        xattrs.insert(b"security.capability".to_vec(), CAPABILITY.to_vec());
    }
    if *what == What::Dir && random.one_in(6) {
        // Version 2; owner rwx, user 7 r--, group r-x, mask r-x, others --- (linux/posix_acl_xattr.h).
        let mut acl = vec![2, 0, 0, 0];
        for (tag, perm, id) in
            [(1_u16, 7_u16, u32::MAX), (2, 4, 7), (4, 5, u32::MAX), (16, 5, u32::MAX), (32, 0, u32::MAX)]
        {
            acl.extend(tag.to_le_bytes());
            acl.extend(perm.to_le_bytes());
            acl.extend(id.to_le_bytes());
        }
        xattrs.insert(b"system.posix_acl_default".to_vec(), acl);
    }
    let ids = [0, 0, 0, 1000, 65534, 3_000_000_000, u32::MAX - 1];
    Meta {
        mode: random.pick(&[0o644, 0o755, 0o600, 0, 0o777, 0o4755, 0o2755, 0o1777, 0o7777]),
        owner: (random.pick(&ids), random.pick(&ids)),
        mtime: random.pick(&[(0, 0), (1_700_000_000, 123_456_789), (-5, 250_000_000), (-1, 0), (1 << 33, 1)]),
        xattrs,
    }
}

fn content(random: &mut Random) -> What {
    match random.below(14) {
        0..=4 => {
            let length = random.pick(&[0, 1, 511, 512, 513, 5000]);
            What::File((0..length).map(|_| random.next() as u8).collect())
        }
        5..=9 => What::Dir,
        10 => What::Fifo,
        // The largest that XFS takes.
        11 => What::Char(random.pick(&[0, 1, 511]), random.pick(&[0, 3, 0x3_ffff])),
        12 => What::Block(8, 1),
        _ => {
            let targets = ["a", "usr/bin", "/usr/bin", "../../usr", "../../../../etc/passwd", "loop", "/"];
            What::Symlink(random.pick(&targets).into())
        }
    }
}

/// One layer on top of `model`, and the model after it.
pub(crate) fn layer(random: &mut Random, model: &mut Model) -> Vec<Op> {
    let lower = model.clone();
    // Either markers of any kind, or paths through symlinks.
    let through_symlinks = random.one_in(3);
    let mut markers = Vec::new();
    for _ in 0..if through_symlinks { 0 } else { random.below(5) } {
        let mut at = path(random);
        let real =
            |path: &[Vec<u8>]| (0..=path.len()).all(|n| matches!(lower.plain(&path[..n]), None | Some(What::Dir)));
        if random.one_in(3) {
            at.truncate(random.below(at.len() + 1));
            if real(&at) {
                markers.push(Op::Opaque(at));
            }
        } else if real(&at[..at.len() - 1]) {
            markers.push(Op::Whiteout(at));
        }
    }
    for marker in &markers {
        model.mark(marker);
    }
    let mut ops = Vec::new();
    if random.one_in(4) {
        ops.push(Op::Add(Vec::new(), What::Dir, meta(random, &What::Dir)));
        model.add(&ops[0]).expect("the root is a directory");
    }
    for _ in 0..random.below(16) {
        let at = path(random);
        let op = if random.one_in(5) {
            Op::Link(at, path(random))
        } else {
            let what = content(random);
            let meta = meta(random, &what);
            Op::Add(at, what, meta)
        };
        let mut next = model.clone();
        if fits(&op, &lower, model, &markers, through_symlinks) && next.add(&op).is_ok() {
            *model = next;
            ops.push(op);
        }
    }
    for marker in markers {
        let at = random.below(ops.len() + 1);
        ops.insert(at, marker);
    }
    ops
}

fn fits(op: &Op, lower: &Model, now: &Model, markers: &[Op], through_symlinks: bool) -> bool {
    let (at, target) = match op {
        Op::Add(at, ..) => (at, None),
        Op::Link(at, target) => (at, Some(target)),
        Op::Whiteout(_) | Op::Opaque(_) => return true,
    };
    let is_dir = matches!(op, Op::Add(_, What::Dir, _));
    // No marker's parent turns into something else.
    let turns = markers.iter().any(|marker| match marker {
        Op::Whiteout(hidden) => hidden.len() > at.len() && hidden.starts_with(at),
        Op::Opaque(dir) => dir.starts_with(at),
        _ => false,
    });
    // A parent that no entry makes doesn't depend on a file's being hidden first.
    let parents = |path: &Path| {
        (1..path.len()).all(|n| {
            let prefix = &path[..n];
            match now.plain(prefix) {
                None => through_symlinks || matches!(lower.plain(prefix), None | Some(What::Dir)),
                Some(What::Symlink(_)) => through_symlinks,
                Some(_) => true,
            }
        })
    };
    (is_dir || !turns) && parents(at) && target.is_none_or(parents)
}

/// The tar of a layer, each entry in a random style.
pub(crate) fn tar(random: &mut Random, ops: &[Op]) -> Vec<u8> {
    let mut tar = Tar::default();
    for op in ops {
        let prefix = random.pick(&["", "./", "/", "././"]);
        let spell = |path: &Path| [prefix.as_bytes(), &path.join(&b'/')].concat();
        let raw = match op {
            Op::Add(path, what, meta) => {
                let (kind, data, link, rdev) = match what {
                    What::Dir => (b'5', Vec::new(), Vec::new(), (0, 0)),
                    What::File(data) => (random.pick(b"07\0"), data.clone(), Vec::new(), (0, 0)),
                    What::Symlink(target) => (b'2', Vec::new(), target.clone(), (0, 0)),
                    What::Fifo => (b'6', Vec::new(), Vec::new(), (0, 0)),
                    What::Char(major, minor) => (b'3', Vec::new(), Vec::new(), (*major, *minor)),
                    What::Block(major, minor) => (b'4', Vec::new(), Vec::new(), (*major, *minor)),
                };
                let mut name = spell(path);
                if name.is_empty() {
                    name = b"./".to_vec();
                } else if kind == b'5' && random.one_in(2) && !name.ends_with(b"/") {
                    name.push(b'/');
                }
                let Meta { mode, owner: (uid, gid), mtime, xattrs } = meta.clone();
                Raw { kind, name, link, mode, uid, gid, mtime, data, xattrs, rdev }
            }
            Op::Link(path, target) => Raw::new(b'1', spell(path)).link(spell(target)),
            Op::Whiteout(path) => {
                let (last, parent) = path.split_last().expect("not the root");
                let marker = [b".wh.", &last[..]].concat();
                Raw::new(b'0', spell(&[parent, &[marker]].concat()))
            }
            Op::Opaque(path) => Raw::new(b'0', spell(&[&path[..], &[b".wh..wh..opq".to_vec()]].concat())),
        };
        tar.entry(&raw, random.pick(&[Style::Pax, Style::Gnu]));
    }
    tar.end()
}
