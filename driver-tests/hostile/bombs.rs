//! Little that becomes much: by compression, by holes, by counts, by sizes that are only claimed.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;

use serde_json::json;

use crate::guard::{Guard, MEMORY, MEMORY_ZSTD};
use crate::layout::{Files, blob, image};
use crate::support::image::{Packing, TestImage, pack, sha256};
use crate::writer::{Raw, Style, Tar, record};

const MB: u64 = 1_000_000;

/// That many zeros, compressed.
fn zeros(packing: Packing, bytes: u64) -> Vec<u8> {
    let mut zeros = std::io::repeat(0).take(bytes);
    match packing {
        Packing::Plain => unreachable!("bombs are compressed"),
        Packing::Gzip => {
            let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            std::io::copy(&mut zeros, &mut gzip).expect("gzip");
            gzip.finish().expect("gzip")
        }
        Packing::Zstd => zstd::encode_all(zeros, 1).expect("zstd"),
    }
}

/// An image whose only layer is this blob, whatever tar is in it.
fn image_of(layer: Vec<u8>) -> Files {
    TestImage::new("evil").tar(Packing::Plain, Vec::new()).with_blob(0, layer).layout()
}

/// The header of a file that claims so many bytes.
fn claims(name: &str, kind: u8, bytes: u64) -> Vec<u8> {
    let mut header = tar::Header::new_gnu();
    header.set_path(name).expect("short");
    header.set_mode(0o644);
    header.set_size(bytes);
    header.set_entry_type(tar::EntryType::new(kind));
    header.set_cksum();
    header.as_bytes().to_vec()
}

fn write(guard: &Guard, bytes: &[u8]) -> std::path::PathBuf {
    let path = guard.input("archive.tar");
    fs::write(&path, bytes).expect("write");
    path
}

#[test]
fn layers_that_unpack_to_more_than_the_limit() {
    let guard = Guard::new();
    for packing in [Packing::Gzip, Packing::Zstd] {
        // A file of 300 MB in a few hundred KB, or less. Its header says so, or says less and the rest stands behind the end.
        let honest = [compressed(packing, &claims("zeros", b'0', 300 * MB)), zeros(packing, 300 * MB)].concat();
        let hidden = [compressed(packing, &[0; 1024]), zeros(packing, 300 * MB)].concat();
        for (what, blob, why) in [
            ("a file of zeros", honest, "larger than the limit of 50000000 bytes"),
            ("zeros behind the end", hidden, "larger than the limit of 50000000 bytes when decompressed"),
        ] {
            let path = write(&guard, &pack(&image_of(blob)));
            let error = guard.refuses(what, &path, &["--max-layer-size", "50MB"], why, MEMORY);
            assert!(error.contains("hint: if you trust the image, raise the limit with --max-layer-size"), "{error}");
        }
    }
}

fn compressed(packing: Packing, bytes: &[u8]) -> Vec<u8> {
    TestImage::new("").tar(packing, bytes.to_vec()).layers.remove(0).blob
}

#[test]
fn archives_that_decompress_to_more_than_the_limit() {
    let guard = Guard::with_config("max_archive_size = \"50MB\"\n");
    for packing in [Packing::Gzip, Packing::Zstd] {
        let path = write(&guard, &zeros(packing, 300 * MB));
        let why = "the archive is larger than the limit of 50000000 bytes";
        let error = guard.refuses("an archive of zeros", &path, &[], why, MEMORY);
        assert!(error.contains("raise max_archive_size in"), "{error}");
    }
}

#[test]
fn zstd_windows() {
    let guard = Guard::new();
    let window = |log: u32, bytes: u64| {
        let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).expect("zstd");
        encoder.window_log(log).expect("a window");
        std::io::copy(&mut std::io::repeat(0).take(bytes), &mut encoder).expect("zstd");
        encoder.finish().expect("zstd")
    };
    // Frames of 200 MB: the first says that 2 GiB of it have to be kept at hand, the second 128 MiB.
    let path = write(&guard, &pack(&image_of(window(31, 200 * MB))));
    guard.refuses("a window of 2 GiB", &path, &[], "its zstd window is larger than 128 MiB", MEMORY);
    let path = write(&guard, &pack(&image_of(window(27, 200 * MB))));
    guard.refuses("a window of 128 MiB", &path, &["--max-layer-size", "100MB"], "larger than the limit", MEMORY_ZSTD);
}

#[test]
fn sizes_that_are_only_claimed() {
    let guard = Guard::new();
    let mut long_value = Vec::new();
    record(&mut long_value, b"SCHILY.xattr.user.long", &[b'v'; 70_000]);
    let mut many = Vec::new();
    for number in 0..3000 {
        record(&mut many, format!("SCHILY.xattr.user.{number:0200}").as_bytes(), b"v");
    }
    let extended = |payload: &[u8]| {
        let mut tar = Tar::default();
        tar.block(b'x', b"records", payload);
        tar.entry(&Raw::new(b'0', "file"), Style::Pax);
        tar.end()
    };
    let deep = vec!["d"; 5000].join("/");
    for (what, tar, why) in [
        ("a file of 8 GiB and none", claims("f", b'0', (8 << 30) - 1), "truncated"),
        ("a file of 7 EB", base_256(claims("f", b'0', 0)), "larger than the limit"),
        ("PAX records of 4 GB", claims("x", b'x', 4_000_000_000), "extension header is larger than 1048576 bytes"),
        ("a GNU name of 4 GB", claims("L", b'L', 4_000_000_000), "extension header is larger than 1048576 bytes"),
        ("a GNU link of 4 GB", claims("K", b'K', 4_000_000_000), "extension header is larger than 1048576 bytes"),
        ("an attribute of 70 KB", extended(&long_value), "Argument list too long"),
        ("3,000 attributes", extended(&many), "more than the 65536 that Linux can list"),
        ("5,000 directories deep", Tar::of(&[Raw::new(b'0', deep)]), "more components than the limit of 4096"),
    ] {
        let image = TestImage::new("evil").tar(Packing::Gzip, tar);
        let path = write(&guard, &pack(&image.layout()));
        guard.refuses(what, &path, &[], why, MEMORY);
    }
}

/// The header's size as 7 EB, in GNU's base 256.
fn base_256(mut header: Vec<u8>) -> Vec<u8> {
    header[124..136].copy_from_slice(&[0x80, 0, 0, 0, 0x60, 0, 0, 0, 0, 0, 0, 0]);
    header[148..156].fill(b' ');
    let sum: u32 = header.iter().map(|&b| u32::from(b)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    header
}

#[test]
fn counts_past_their_limits() {
    let guard = Guard::with_config(
        "max_layer_entries = 2000\nmax_path_depth = 10\nmax_layers = 3\nmax_archive_entries = 20\nmax_metadata_size = \"4kB\"\n",
    );
    let files = |count: usize| -> Vec<_> { (0..count).map(|n| Raw::new(b'0', format!("d{}/{n}", n % 7))).collect() };
    let layered = |count: usize| {
        (0..count).fold(TestImage::new("evil"), |image, n| image.files(Packing::Plain, &[("f", &[b'0' + n as u8])]))
    };
    let one = |tar: Vec<u8>| TestImage::new("evil").tar(Packing::Gzip, tar).layout();
    let mut crowded = image().layout();
    crowded.extend((0..20).map(|n| (format!("more/{n}"), Vec::new())));
    let mut wordy = image().config(json!({ "Labels": { "long": "l".repeat(4000) } })).layout();
    wordy.insert("a".into(), Vec::new());
    for (what, files, why, key) in [
        ("names", one(Tar::of(&files(2000))), "more entries than the limit of 2000", "max_layer_entries"),
        (
            "depth",
            one(Tar::of(&[Raw::new(b'0', ["d"; 11].join("/"))])),
            "components than the limit of 10",
            "max_path_depth",
        ),
        ("layers", layered(4).layout(), "4 layers, more than the limit of 3", "max_layers"),
        ("archive", crowded, "the archive has more entries than the limit of 20", "max_archive_entries"),
        ("documents", wordy, "take more than the limit of 4000 bytes", "max_metadata_size"),
    ] {
        let path = write(&guard, &pack(&files));
        let error = guard.refuses(what, &path, &[], why, MEMORY);
        assert!(error.contains(&format!("raise {key} in /etc/reflinkd/config.toml")), "{error}");
    }
    for (what, files) in [("names", one(Tar::of(&files(1993)))), ("layers", layered(3).layout())] {
        let path = write(&guard, &pack(&files));
        guard.accepts(what, &path, &[], MEMORY, |_| {});
    }
}

#[test]
fn a_raised_limit_lets_the_same_image_in() {
    // Each limit's key in the configuration does what the hint says.
    let deep = format!("{{\"x\":{}{}}}", "[".repeat(80), "]".repeat(80));
    let mut nested = image().layout();
    for _ in 0..5 {
        let inner = nested.remove("index.json").expect("an index");
        let entry = json!({
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "digest": format!("sha256:{}", sha256(&inner)), "size": inner.len(),
        });
        nested.insert(blob(&inner), inner);
        nested.insert("index.json".into(), json!({ "manifests": [entry], "x": [] }).to_string().into_bytes());
    }
    let index = String::from_utf8(nested.remove("index.json").expect("an index")).expect("UTF-8");
    nested.insert("index.json".into(), index.replace("[]", &deep).into_bytes());
    let mut padded = image().layout();
    padded.get_mut("index.json").expect("an index").resize(5 << 20, b' ');
    let strict = Guard::new();
    for (files, why, config) in [
        (&nested, "limit of 64 deep", "max_json_depth = 100\nmax_index_depth = 10\n"),
        (&padded, "more than the limit of 4194304", "max_manifest_size = \"6MiB\"\n"),
    ] {
        let path = write(&strict, &pack(files));
        strict.refuses(config, &path, &[], why, MEMORY);
        let generous = Guard::with_config(config);
        let path = write(&generous, &pack(files));
        generous.accepts(config, &path, &[], MEMORY, |_| {});
    }
}

#[test]
fn holes_are_free_and_their_edges_are_not() {
    let guard = Guard::new();
    let sparse = |map: String, size: u64, data: &[u8]| {
        let mut stored = map.into_bytes();
        stored.resize(stored.len().next_multiple_of(512), 0);
        stored.extend(data);
        let mut tar = Tar::default();
        tar.pax(&[
            ("GNU.sparse.major", b"1"),
            ("GNU.sparse.minor", b"0"),
            ("GNU.sparse.realsize", size.to_string().as_bytes()),
        ]);
        tar.entry(&Raw::new(b'0', "sparse").data(stored), Style::Pax);
        TestImage::new("evil").tar(Packing::Zstd, tar.end()).layout()
    };
    // As much as a file can have, and nothing of it there.
    let path = write(&guard, &pack(&sparse("1\n0\n1\n".into(), i64::MAX as u64, b"x")));
    guard.accepts("a file of 8 EiB", &path, &[], MEMORY, |guard| {
        guard.world.ok(&["create", "--image", "evil", "c"]);
        let meta = fs::metadata(guard.world.tree("c").join("sparse")).expect("stat");
        assert_eq!(meta.len(), i64::MAX as u64);
        assert!(meta.blocks() < 100);
        guard.world.ok(&["rm", "c"]);
    });
    // A byte in every second block: 20,000 of them in 280 KB, 80 MB on the disk.
    let map = (0..20_000_u64).fold(String::from("20000\n"), |map, n| map + &format!("{}\n1\n", n * 8192));
    let path = write(&guard, &pack(&sparse(map, 20_000 * 8192, &[b'x'; 20_000])));
    let why = "larger than the limit of 50000000 bytes";
    guard.refuses("a byte in each block", &path, &["--max-layer-size", "50MB"], why, MEMORY);
}

#[test]
fn more_links_than_a_file_can_have() {
    let guard = Guard::new();
    let mut tar = Tar::default();
    tar.entry(&Raw::new(b'0', "file"), Style::Gnu);
    for number in 0..65_600 {
        tar.entry(&Raw::new(b'1', format!("{number}")).link("file"), Style::Gnu);
    }
    let image = TestImage::new("evil").tar(Packing::Zstd, tar.end());
    let path = write(&guard, &pack(&image.layout()));
    guard.refuses("65,600 links", &path, &[], "Too many links", MEMORY);
}

#[test]
fn a_sparse_archive_around_an_image_is_no_bomb() {
    // A plain archive is read in place: an entry of a terabyte of nothing costs nothing.
    let guard = Guard::new();
    let path = guard.input("archive.tar");
    let mut file = fs::File::create(&path).expect("create");
    let good = pack(&image().layout());
    file.write_all(&claims("hole", b'0', 1 << 40)).expect("write");
    file.set_len(512 + (1 << 40)).expect("a hole");
    std::os::unix::fs::FileExt::write_all_at(&file, &good, 512 + (1 << 40)).expect("write");
    guard.accepts("an entry of a terabyte", &path, &[], MEMORY, |_| {});
}
