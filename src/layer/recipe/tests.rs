use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::*;
use crate::layer::sink::Sink;

/// A directory with a tree and a place for a recipe.
struct Scratch(tempfile::TempDir);

impl Scratch {
    fn new() -> Self {
        let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/tmp");
        std::fs::create_dir_all(&target).unwrap();
        let scratch = Self(tempfile::tempdir_in(target).unwrap());
        std::fs::create_dir_all(scratch.root().join("a")).unwrap();
        std::fs::write(scratch.root().join("a/b"), "hello").unwrap();
        scratch
    }

    fn root(&self) -> PathBuf {
        self.0.path().join("fs")
    }

    fn recipe(&self) -> PathBuf {
        self.0.path().join("recipe")
    }

    /// The recipe of a tar of these pieces: literals, and contents as path, offset and bytes.
    fn write(&self, pieces: &[Said<'_>]) -> Vec<u8> {
        let mut writer = RecipeWriter::create(&self.recipe()).unwrap();
        let mut plain = Vec::new();
        for piece in pieces {
            match *piece {
                Said::Literal(bytes) => writer.literal(bytes).unwrap(),
                Said::Content(path, offset, bytes) => writer.content(path.as_bytes(), offset, bytes).unwrap(),
            }
            let (Said::Literal(bytes) | Said::Content(_, _, bytes)) = piece;
            plain.extend_from_slice(bytes);
        }
        assert_eq!(writer.finish().unwrap(), self.recipe().metadata().unwrap().len());
        plain
    }

    fn restore(&self) -> Result<Vec<u8>> {
        let mut out = Vec::new();
        restore(&self.recipe(), &self.root(), &mut out, &|| false).map(|()| out)
    }

    /// The pieces as they stand in the frame.
    fn pieces(&self) -> Vec<u8> {
        let bytes = std::fs::read(self.recipe()).unwrap();
        zstd::decode_all(&bytes[codec::HEAD..]).unwrap()
    }
}

enum Said<'a> {
    Literal(&'a [u8]),
    Content(&'a str, u64, &'a [u8]),
}
use Said::{Content, Literal};

#[test]
fn the_example_of_the_format() {
    let scratch = Scratch::new();
    let plain = scratch.write(&[Literal(&[1; 512]), Content("a/b", 0, b"hello"), Literal(&[0; 507])]);
    let expected =
        [&[0x80, 0x10][..], &[1; 512], &[0x15, 0x00, 0x03], b"a/b", &[0x00, 0xec, 0x0f], &[0; 507], &[0x83, 0x20]];
    assert_eq!(scratch.pieces(), expected.concat());
    assert_eq!(scratch.restore().unwrap(), plain);
    assert_eq!(plain_size(&scratch.recipe()).unwrap(), 1024);
}

#[test]
fn what_goes_on_is_one_piece() {
    let scratch = Scratch::new();
    let long = vec![b'x'; 70_000];
    let plain = scratch.write(&[
        Literal(b"he"),
        Literal(b"ad"),
        Content("a/b", 0, b"he"),
        Content("a/b", 2, b"l"),
        Content("a/b", 4, b"o"),
        Content("a/b", 0, b""),
        Literal(&long),
        Content("a/b", 1, b"ello"),
    ]);
    assert_eq!(scratch.restore().unwrap(), plain);
    let mut expected = vec![16];
    expected.extend(b"head\x0d\x00\x03a/b\x00\x06\x04");
    assert_eq!(scratch.pieces()[..expected.len()], expected);
    // A literal has at most 64 KiB, and the path isn't repeated.
    assert_eq!(scratch.pieces().len(), expected.len() + 3 + (64 << 10) + 3 + (70_000 - (64 << 10)) + 2 + 3);
}

#[test]
fn nothing_is_a_tar_too() {
    let scratch = Scratch::new();
    assert_eq!(scratch.write(&[]), b"");
    assert_eq!(scratch.restore().unwrap(), b"");
}

#[test]
fn names_that_are_no_text_and_deeper_than_path_max() {
    let scratch = Scratch::new();
    let deep = vec!["directory"; 600].join("/");
    let mut at = rustix::fs::open(scratch.root(), rustix::fs::OFlags::PATH, rustix::fs::Mode::empty()).unwrap();
    let mode = rustix::fs::Mode::from_raw_mode(0o755);
    for name in deep.split('/') {
        rustix::fs::mkdirat(&at, name, mode).unwrap();
        at = rustix::fs::openat(&at, name, rustix::fs::OFlags::PATH, rustix::fs::Mode::empty()).unwrap();
    }
    let flags = rustix::fs::OFlags::WRONLY | rustix::fs::OFlags::CREATE;
    let file = rustix::fs::openat(&at, &b"\xff\n"[..], flags, mode).unwrap();
    rustix::io::write(&file, b"deep").unwrap();
    let path = [deep.as_bytes(), b"/\xff\n"].concat();
    let mut writer = RecipeWriter::create(&scratch.recipe()).unwrap();
    writer.content(&path, 0, b"deep").unwrap();
    // No tree has such a path.
    writer.content(&vec![b'x'; LONGEST_PATH + 1], 0, b"literal").unwrap();
    writer.finish().unwrap();
    assert_eq!(scratch.restore().unwrap(), b"deepliteral");
}

#[test]
fn reading_leaves_access_times_alone() {
    let scratch = Scratch::new();
    let file = scratch.root().join("a/b");
    let long_ago = rustix::fs::Timespec { tv_sec: 1, tv_nsec: 0 };
    let times = rustix::fs::Timestamps { last_access: long_ago, last_modification: long_ago };
    rustix::fs::utimensat(rustix::fs::CWD, &file, &times, rustix::fs::AtFlags::empty()).unwrap();
    scratch.write(&[Content("a/b", 0, b"hello")]);
    scratch.restore().unwrap();
    assert_eq!(file.metadata().unwrap().atime(), 1);
}

fn assert_damaged(found: Result<Vec<u8>>, words: &str) {
    let error = found.expect_err(words);
    assert_eq!(error.kind(), Kind::Damaged, "{error}");
    assert!(error.to_string().contains(words), "{error}");
}

#[test]
fn a_tree_that_changed_is_told_by_the_file() {
    use std::os::unix::fs::symlink;
    let scratch = Scratch::new();
    scratch.write(&[Literal(b"head"), Content("a/b", 0, b"hello")]);
    let (dir, file) = (scratch.root().join("a"), scratch.root().join("a/b"));
    std::fs::write(&file, "hell").unwrap();
    assert_damaged(scratch.restore(), "\"a/b\" in");
    assert_damaged(scratch.restore(), "is shorter than it was");
    std::fs::remove_file(&file).unwrap();
    assert_damaged(scratch.restore(), "is missing");
    symlink("/etc/passwd", &file).unwrap();
    assert_damaged(scratch.restore(), "is no regular file any more");
    std::fs::remove_file(&file).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &file,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o600),
        0,
    )
    .unwrap();
    assert_damaged(scratch.restore(), "is no regular file any more");
    std::fs::remove_file(&file).unwrap();
    std::fs::create_dir(&file).unwrap();
    assert_damaged(scratch.restore(), "is no regular file any more");
    std::fs::remove_dir_all(&dir).unwrap();
    symlink("/", &dir).unwrap();
    assert_damaged(scratch.restore(), "is no regular file any more");
    std::fs::remove_file(&dir).unwrap();
    assert_damaged(scratch.restore(), "is missing");
}

#[test]
fn a_recipe_cut_short_anywhere_is_damaged() {
    let scratch = Scratch::new();
    scratch.write(&[Literal(b"head"), Content("a/b", 0, b"hello"), Literal(b"tail")]);
    let whole = std::fs::read(scratch.recipe()).unwrap();
    for length in 0..whole.len() {
        std::fs::write(scratch.recipe(), &whole[..length]).unwrap();
        assert_damaged(scratch.restore(), scratch.recipe().to_str().unwrap());
    }
    std::fs::write(scratch.recipe(), [&whole[..], b"x"].concat()).unwrap();
    assert_damaged(scratch.restore(), "something stands behind its end");
}

#[test]
fn no_flipped_bit_gives_another_tar() {
    let scratch = Scratch::new();
    let plain = scratch.write(&[Literal(b"head"), Content("a/b", 0, b"hello"), Literal(b"tail")]);
    let whole = std::fs::read(scratch.recipe()).unwrap();
    for bit in 0..whole.len() * 8 {
        let mut flipped = whole.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        std::fs::write(scratch.recipe(), flipped).unwrap();
        match scratch.restore() {
            // How much memory the frame asks for is in its head, and nothing of the tar.
            Ok(restored) => assert_eq!(restored, plain, "bit {bit}"),
            Err(error) => assert_eq!(error.kind(), Kind::Damaged, "bit {bit}: {error}"),
        }
    }
}

#[test]
fn pieces_that_lie_are_damaged() {
    let scratch = Scratch::new();
    let recipe = |plain: u64, pieces: &[u8]| {
        let frame = zstd::encode_all(pieces, 1).unwrap();
        std::fs::write(scratch.recipe(), [&codec::head(plain)[..], &frame].concat()).unwrap();
        scratch.restore()
    };
    assert_eq!(recipe(5, b"\x15\x00\x03a/b\x00\x17").unwrap(), b"hello");
    for (plain, pieces, words) in [
        (5, &b"\x15\x00\x03a/b\x00\x17x"[..], "something stands behind"),
        (5, b"\x15\x00\x03a/b\x00\x1b", "not all of the tar"),
        (6, b"\x15\x00\x03a/b\x00\x1b", "not all of the tar"),
        (4, b"\x15\x00\x03a/b\x00\x17", "more than the tar"),
        (5, b"\x15\x00\x03a/b\x00", "truncated"),
        (5, b"\x15\x01\x02a/b\x00\x17", "longer than it can be"),
        (5, b"\x15\x00\xff\xff\xff\xff\x07a/b\x00\x17", "longer than it can be"),
        (5, b"\x15\x00\x10a/b\x00\x17", "ends in a path"),
        (5, b"\x15\x00\x04a//b\x00\x17", "a path is none"),
        (5, b"\x15\x00\x04/a/b\x00\x17", "a path is none"),
        (5, b"\x15\x00\x05a/../\x00\x17", "a path is none"),
        (5, b"\x15\x00\x00\x00\x17", "a path is none"),
        (5, b"\x16\x00\x17", "content of no file"),
        (5, b"\x15\x00\x03a/b\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01\x17", "past the end"),
        (5, b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", "a number is too large"),
        (5, b"\x15\x00\x03a/b\x01\x17", "is shorter than it was"),
        (5, b"\x14he", "ends in a literal"),
    ] {
        assert_damaged(recipe(plain, pieces), words);
    }
}

#[test]
fn a_frame_that_wants_much_memory_is_refused() {
    let scratch = Scratch::new();
    let mut frame = zstd::Encoder::new(Vec::new(), 1).unwrap();
    frame.window_log(27).unwrap();
    std::io::copy(&mut std::io::repeat(0).take(64 << 20), &mut frame).unwrap();
    let frame = frame.finish().unwrap();
    std::fs::write(scratch.recipe(), [&codec::head(5)[..], &frame].concat()).unwrap();
    assert_damaged(scratch.restore(), "memory");
}

#[test]
fn a_recipe_that_is_not_finished_leaves_nothing() {
    let scratch = Scratch::new();
    let mut writer = RecipeWriter::create(&scratch.recipe()).unwrap();
    writer.literal(b"head").unwrap();
    assert!(scratch.recipe().exists());
    drop(writer);
    assert!(!scratch.recipe().exists());
    assert_eq!(plain_size(&scratch.recipe()).unwrap_err().kind(), Kind::NotFound);
}

#[test]
fn a_full_disk_is_told_and_leaves_nothing() {
    let scratch = Scratch::new();
    std::os::unix::fs::symlink("/dev/full", scratch.recipe()).unwrap();
    let mut writer = RecipeWriter::create(&scratch.recipe()).unwrap();
    // More than the buffers between hold, and nothing that compresses.
    let mut noise = vec![0; 1 << 20];
    getrandom::fill(&mut noise).unwrap();
    let error = writer.literal(&noise).unwrap_err();
    assert_eq!(error.kind(), Kind::NoSpace);
    assert!(error.to_string().contains("recipe: No space left on device"), "{error}");
    drop(writer);
    assert!(scratch.recipe().symlink_metadata().is_err());
}

#[test]
fn whoever_cancels_is_heard() {
    let scratch = Scratch::new();
    scratch.write(&[Literal(b"head")]);
    let error = restore(&scratch.recipe(), &scratch.root(), &mut Vec::new(), &|| true).unwrap_err();
    assert_eq!(error.kind(), Kind::Interrupted);
}
