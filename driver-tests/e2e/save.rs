//! Images on their way out: what is saved is what was loaded, to this program and to others.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::support::image::{Packing, TestImage, sha256};
use crate::support::{LoopFs, MIB, arg, random_bytes, reflinkd_command, run, tree_digest};
use crate::world::{Ground, World, base_image, bytes};

on_btrfs_and_xfs! {
    what_is_saved_is_loaded_elsewhere_as_the_same_image
    skopeo_verifies_what_is_saved_and_saves_what_it_wrote
    several_images_share_an_archive
    a_layer_that_is_not_what_it_was_is_not_saved
    what_cannot_be_written_leaves_nothing
    an_interrupted_save_ends
    recipes_are_metadata
    a_recipe_that_finds_no_room_leaves_nothing
}

const FORMS: [(&str, &str); 7] = [
    ("docker-archive", "none"),
    ("oci-archive", "none"),
    ("oci-archive", "gzip"),
    ("oci-archive", "zstd"),
    ("oci-layout", "none"),
    ("oci-dir", "gzip"),
    ("oci-layout", "zstd"),
];

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

/// A tar as no tree tells: names twice, links in place of files, parents through symlinks, something behind the end.
fn difficult_tar() -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut add = |kind, name: &str, link: &str, data: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(0o755);
        header.set_size(data.len() as u64);
        if link.is_empty() {
            builder.append_data(&mut header, name, data).expect("write tar");
        } else {
            builder.append_link(&mut header, name, link).expect("write tar");
        }
    };
    use tar::EntryType::{Directory, Link, Regular, Symlink};
    let long = format!("usr/{}/file", "long-name/".repeat(20));
    add(Directory, "usr/bin/", "", b"");
    add(Symlink, "bin", "usr/bin", b"");
    add(Regular, "bin/tool", "", b"through a symlink");
    add(Regular, "etc/twice", "", b"the first");
    add(Link, "etc/other", "etc/twice", b"");
    add(Regular, "etc/twice", "", b"the second");
    add(Regular, "usr/gone", "", &random_bytes(100_000));
    add(Symlink, "usr/gone", "/etc", b"");
    add(Regular, &long, "", b"long");
    let mut tar = builder.into_inner().expect("write tar");
    tar.extend([0; 8192]);
    tar.extend(b"and some notes");
    tar
}

fn difficult_image() -> TestImage {
    TestImage::new("base")
        .files(Packing::Gzip, &[("etc/", b""), ("etc/passwd", b"root\n"), ("etc/old", b"old")])
        .tar(Packing::Plain, difficult_tar())
        .step("ENV A=1")
        .files(Packing::Zstd, &[("etc/.wh.old", b""), ("etc/passwd", b"root\nuser\n"), ("bin/new", b"new")])
}

/// What a file holds, or the files of a directory.
fn content(path: &Path) -> Vec<(PathBuf, String)> {
    if path.is_file() {
        return vec![(PathBuf::new(), sha256(&fs::read(path).expect("read")))];
    }
    let mut files = Vec::new();
    for entry in fs::read_dir(path).expect("list") {
        let entry = entry.expect("list");
        let below = content(&entry.path()).into_iter();
        files.extend(below.map(|(name, digest)| (Path::new(&entry.file_name()).join(name), digest)));
    }
    files.sort();
    files
}

fn diff_ids(world: &World) -> Vec<String> {
    let layers = world.rows(&["layers"]);
    layers.iter().map(|layer| layer["diff_id"].as_str().expect("text").to_string()).collect()
}

fn what_is_saved_is_loaded_elsewhere_as_the_same_image(ground: Ground) {
    let world = World::on(ground);
    // And from one kind of tree to the other.
    let other = World::on(if ground == Ground::Xfs { Ground::SIMPLE } else { Ground::Xfs });
    let image = difficult_image();
    world.load(&image);
    world.ok(&["create", "--image", "base", "c"]);
    let tree = tree_digest(&world.tree("c"));
    let places = world.places();
    for (format, compress) in FORMS {
        let what = format!("{format} {compress}");
        let out = world.files.path().join(what.replace(' ', "-"));
        world.ok(&["save", "base", "--format", format, "--compress", compress, "-o", text(&out)]);
        assert_eq!(world.places(), places, "{what}: the store is as it was");
        assert_eq!(other.ok(&["load", "-q", text(&out)]), "Loaded image: base:latest", "{what}");
        assert_eq!(other.rows(&["images"])[0]["id"], image.id().as_str(), "{what}");
        assert_eq!(diff_ids(&other), image.diff_ids(), "{what}");
        other.ok(&["create", "--image", "base", "c"]);
        assert_eq!(tree_digest(&other.tree("c")), tree, "{what}");
        // The same bytes from there.
        let again = other.files.path().join("again");
        other.ok(&["save", "-o", text(&again), "--format", format, "--compress", compress, "base:latest"]);
        assert_eq!(content(&out), content(&again), "{what}");
        if again.is_dir() { fs::remove_dir_all(&again) } else { fs::remove_file(&again) }.expect("remove");
        other.ok(&["rm", "c"]);
        other.ok(&["rmi", "base"]);
        assert_eq!(other.places(), 0, "{what}");
    }
    let piped = reflinkd_command(world.root(), &["save", "base"]).output().expect("run");
    assert!(piped.status.success());
    assert_eq!(sha256(&piped.stdout), content(&world.files.path().join("docker-archive-none"))[0].1);
}

fn skopeo_verifies_what_is_saved_and_saves_what_it_wrote(ground: Ground) {
    let world = World::on(ground);
    let files = world.files.path();
    let copy = |from: &str, to: &str| {
        run("skopeo", &["--insecure-policy", "copy", "-q", from, to]);
    };
    let image = TestImage::new("base")
        .files(Packing::Gzip, &[("etc/", b""), ("etc/old", b"old")])
        .tar(Packing::Gzip, difficult_tar());
    image.write_layout(&files.join("layout"));
    let theirs = files.join("theirs.tar");
    copy(&format!("oci:{}:base", text(&files.join("layout"))), &format!("docker-archive:{}:base:1", text(&theirs)));
    world.ok(&["load", "-q", text(&theirs)]);
    assert_eq!(diff_ids(&world), image.diff_ids());
    for (number, (format, compress)) in FORMS.into_iter().enumerate() {
        let out = files.join(format!("out{number}"));
        world.ok(&["save", "base:1", "--format", format, "--compress", compress, "-o", text(&out)]);
        let (transport, name) = match format {
            "docker-archive" => ("docker-archive", "base:1"),
            "oci-archive" => ("oci-archive", "docker.io/library/base:1"),
            _ => ("oci", "docker.io/library/base:1"),
        };
        let copied = files.join(format!("copied{number}"));
        copy(&format!("{transport}:{}:{name}", text(&out)), &format!("dir:{}", text(&copied)));
        let json = |name: &str| -> Value {
            serde_json::from_slice(&fs::read(copied.join(name)).expect("read")).expect("JSON")
        };
        let config = json("manifest.json")["config"]["digest"].as_str().expect("text").to_string();
        assert_eq!(config, image.id(), "{format} {compress}");
        let config = json(config.strip_prefix("sha256:").expect("sha256"));
        assert_eq!(config["rootfs"]["diff_ids"], serde_json::json!(image.diff_ids()), "{format} {compress}");
    }
    // Docker's form is an OCI archive, too.
    let both = format!("oci-archive:{}:docker.io/library/base:1", text(&files.join("out0")));
    copy(&both, &format!("dir:{}", text(&files.join("both"))));
}

fn several_images_share_an_archive(ground: Ground) {
    let world = World::on(ground).with_base();
    let mut derived = base_image();
    derived.name = "ghcr.io/o/derived:v2".into();
    let derived = derived.files(Packing::Plain, &[("more", b"more")]);
    world.load(&derived);
    world.ok(&["tag", "base", "localhost/again:1"]);
    let id = base_image().id();
    let out = world.files.path().join("out.tar");
    world.ok(&["save", "-o", text(&out), "base", "ghcr.io/o/derived:v2", "localhost/again:1", "base", &id[7..19]]);
    let names: Vec<_> = run("tar", &["-tf", arg(&out)]).lines().map(str::to_string).collect();
    // Layers of both, configuration and manifest of each.
    assert_eq!(names.iter().filter(|name| name.len() > 70).count(), derived.layers.len() + 4, "{names:?}");
    let tree = world.places();
    for name in ["base", "again:1", "ghcr.io/o/derived:v2"] {
        world.ok(&["rmi", if name == "again:1" { "localhost/again:1" } else { name }]);
    }
    assert_eq!(world.places(), 0);
    let loaded = world.ok(&["load", "-q", text(&out)]);
    let expected =
        ["base:latest", "localhost/again:1", "ghcr.io/o/derived:v2"].map(|name| format!("Loaded image: {name}"));
    assert_eq!(loaded.lines().collect::<Vec<_>>(), expected);
    assert_eq!(world.places(), tree);

    // By its ID it has no name there, and an error names the image.
    world.ok(&["save", "-o", text(&out), &id[7..]]);
    world.ok(&["rmi", "-f", "base"]);
    world.ok(&["rmi", "-f", "localhost/again:1"]);
    assert_eq!(world.ok(&["load", "-q", text(&out)]), format!("Loaded image ID: {id}"));
    let error = world.fails(&["save", "-o", text(&out), "base"]);
    assert!(error.contains("cannot save image base: there is no image base"), "{error}");
}

/// The place of the layer with this diff ID.
fn place(world: &World, diff_id: &str) -> PathBuf {
    let layers = world.rows(&["layers"]);
    let layer = layers.iter().find(|layer| layer["diff_id"] == diff_id).expect("the layer");
    Path::new(layer["directory"].as_str().expect("text")).parent().expect("a place").to_path_buf()
}

fn a_layer_that_is_not_what_it_was_is_not_saved(ground: Ground) {
    let world = World::on(ground).with_base();
    let image = base_image();
    let diff_id = image.diff_ids()[0].clone();
    let place = place(&world, &diff_id);
    let (recipe, root) = (place.join("recipe"), place.join("fs"));
    if ground.filesystem() == "btrfs" {
        run("btrfs", &["property", "set", "-ts", arg(&root), "ro", "false"]);
    }
    let out = world.files.path().join("out");
    let fails = |format: &str, words: &[&str]| {
        let error = world.fails(&["save", "base", "--format", format, "-o", text(&out)]);
        for word in words.iter().chain(&["cannot save", "base", &diff_id[7..19], "hint: "]) {
            assert!(error.contains(word), "{word} is missing: {error}");
        }
        let left: Vec<_> = fs::read_dir(world.files.path()).expect("list").collect();
        assert_eq!(left.len(), 1, "only what was loaded: {left:?}");
    };
    let whole = fs::read(&recipe).expect("a recipe");
    let half = whole.len() / 2;
    let flipped = [&whole[..half], &[!whole[half]], &whole[half + 1..]].concat();
    for (damaged, words) in [(&whole[..half], "truncated"), (&flipped, "damaged"), (&[], "truncated")] {
        fs::write(&recipe, damaged).expect("write");
        fails("oci-archive", &[words, text(&recipe)]);
    }
    // As an older version left it.
    fs::remove_file(&recipe).expect("remove");
    fails("oci-layout", &["loaded by an older reflinkd", "load them again"]);
    fs::write(&recipe, &whole).expect("write");
    world.ok(&["save", "base", "-o", text(&out)]);
    fs::remove_file(&out).expect("remove");

    let file = walk(&root).into_iter().find(|file| file.metadata().expect("stat").len() > 2).expect("a file");
    let content = fs::read(&file).expect("read");
    let changed: Vec<u8> = content.iter().map(|byte| !byte).collect();
    fs::write(&file, &changed).expect("write");
    fails("docker-archive", &["its tree was changed after it was loaded", "a tar with the digest sha256:"]);
    fs::write(&file, &content[1..]).expect("write");
    fails("oci-layout", &["is shorter than it was"]);
    fs::remove_file(&file).expect("remove");
    fails("oci-archive", &["is missing"]);
    fs::write(&file, &content).expect("write");
    world.ok(&["save", "base", "-o", text(&out)]);
}

fn walk(root: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(root).expect("list") {
        let path = entry.expect("list").path();
        match path.symlink_metadata().expect("stat").file_type() {
            kind if kind.is_dir() => files.extend(walk(&path)),
            kind if kind.is_file() => files.push(path),
            _ => {}
        }
    }
    files
}

fn what_cannot_be_written_leaves_nothing(ground: Ground) {
    let world = World::on(ground);
    let noise = random_bytes(24 * MIB);
    world.load(&TestImage::new("large").files(Packing::Plain, &[("noise", &noise)]));
    let small = LoopFs::tmpfs(8 * MIB);
    let out = small.path().join("out");
    for (format, compress) in FORMS {
        let error = world.fails(&["save", "large", "--format", format, "--compress", compress, "-o", text(&out)]);
        assert!(error.contains("No space left on device"), "{error}");
        assert_eq!(fs::read_dir(small.path()).expect("list").count(), 0, "{format} {compress}");
    }
    fs::create_dir(&out).expect("mkdir");
    fs::write(out.join("mine"), "mine").expect("write");
    for (format, words) in [("oci-layout", "isn't empty"), ("docker-archive", "is a directory")] {
        let error = world.fails(&["save", "large", "--format", format, "-o", text(&out)]);
        assert!(error.contains(words) && error.contains("hint: "), "{error}");
    }
    assert_eq!(content(&out), [(PathBuf::from("mine"), sha256(b"mine"))]);
    for args in [&["--format", "oci-layout"][..], &["--compress", "zstd"]] {
        let error = world.fails(&[&["save", "large"], args].concat());
        assert!(error.contains("hint: "), "{error}");
    }
    // A reader that goes away.
    let mut save = reflinkd_command(world.root(), &["save", "large"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("spawn");
    let mut some = [0; 4096];
    save.stdout.take().expect("piped").read_exact(&mut some).expect("read");
    let output = save.wait_with_output().expect("wait");
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("Broken pipe"));
}

fn an_interrupted_save_ends(ground: Ground) {
    let world = World::on(ground);
    let noise = random_bytes(24 * MIB);
    world.load(&TestImage::new("large").files(Packing::Plain, &[("noise", &noise)]));
    // It can't end before it is read to its end.
    let mut save = reflinkd_command(world.root(), &["save", "large"]).stdout(Stdio::piped()).spawn().expect("spawn");
    let mut some = [0; 4096];
    let mut stdout = save.stdout.take().expect("piped");
    stdout.read_exact(&mut some).expect("read");
    kill_process(Pid::from_raw(save.id().try_into().expect("pid")).expect("pid"), Signal::INT).expect("kill");
    let rest = std::io::copy(&mut stdout, &mut std::io::sink()).expect("read");
    assert_eq!(save.wait().expect("wait").code(), Some(130));
    assert!(rest < 24 * MIB, "{rest} bytes");
}

fn recipes_are_metadata(ground: Ground) {
    let world = World::on(ground);
    let metadata = || bytes(&world.row(&["df"], "metadata"), "size");
    // Much that is no file's content: names and nothing in them.
    let names: Vec<_> = (0..3000).map(|_| sha256(&random_bytes(32))).collect();
    let entries: Vec<(&str, &[u8])> = names.iter().map(|name| (name.as_str(), &b""[..])).collect();
    world.load(&TestImage::new("names").files(Packing::Plain, &entries));
    let place = place(&world, &diff_ids(&world)[0]);
    let recipe = place.join("recipe").metadata().expect("a recipe");
    let size = std::os::unix::fs::MetadataExt::blocks(&recipe) * 512;
    assert!(size > 50_000, "{size}");
    assert!(metadata() >= size, "{} < {size}", metadata());
    world.ok(&["rmi", "names"]);
    assert_eq!((world.places(), metadata()), (0, 0));
}

fn a_recipe_that_finds_no_room_leaves_nothing(ground: Ground) {
    let world = World::of_size(512 * MIB, ground).with_room_for_metadata().with_base();
    let places = world.places();
    // Of what AUFS kept for itself the tree gets nothing, so all of it is the recipe's.
    let noise = random_bytes(64 * MIB);
    let image = TestImage::new("noise").files(Packing::Plain, &[("file", b"x"), (".wh..wh.plnk/noise", &noise)]);
    let available = bytes(&world.row(&["df"], "filesystem"), "available");
    let ballast = world.fs.path().join("ballast");
    run("fallocate", &["-l", &(available - 24 * MIB).to_string(), arg(&ballast)]);
    world.fails_loading(&image, "recipe: No space left on device");
    assert_eq!(world.places(), places);
    fs::remove_file(&ballast).expect("remove");
    world.load(&image);
    let out = world.files.path().join("out.tar");
    world.ok(&["save", "noise", "-o", text(&out)]);
    world.ok(&["rmi", "noise"]);
    world.ok(&["load", "-q", text(&out)]);
    assert!(diff_ids(&world).contains(&image.diff_ids()[0]));
}
