//! Images from load to rmi.

use std::fs;
use std::io::Write;
use std::process::Stdio;

use crate::support::image::{Packing, TestImage, layout, pack};
use crate::support::{MB, random_bytes, reflinkd_command, run, tree_digest};
use crate::world::{Ground, World, base_image, bytes};

on_btrfs_and_xfs! {
    every_form_of_the_same_image_gives_the_same_tree
    history_says_which_step_made_a_layer_whatever_its_size
    shared_layers_are_unpacked_once_and_stay_while_needed
    names_move_and_go
    import_makes_an_image_of_a_root_filesystem
    what_real_tools_write_is_loaded
    a_hundred_and_twenty_seven_layers_are_loaded
}

/// Load bytes from standard input.
fn load_stdin(world: &World, bytes: &[u8]) -> String {
    let mut child = reflinkd_command(world.root(), &["load", "-q"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("spawn");
    child.stdin.take().expect("piped").write_all(bytes).expect("write");
    let output = child.wait_with_output().expect("wait");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8")
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(bytes).expect("gzip");
    gzip.finish().expect("gzip")
}

fn every_form_of_the_same_image_gives_the_same_tree(ground: Ground) {
    let world = World::on(ground);
    let image = base_image();
    let (directory, archive, docker) = (
        world.files.path().join("layout"),
        world.files.path().join("image.tar"),
        world.files.path().join("docker.tar"),
    );
    image.write_layout(&directory);
    image.write_archive(&archive);
    fs::write(&docker, image.docker_archive()).expect("write");
    let both: std::collections::BTreeMap<_, _> = {
        // As Docker writes it from version 25 on: a layout with a manifest.json beside it.
        let mut files = image.layout();
        let mut untar = tar::Archive::new(std::io::Cursor::new(image.docker_archive()));
        for entry in untar.entries().expect("tar") {
            let mut entry = entry.expect("tar");
            let name = entry.path().expect("name").to_string_lossy().into_owned();
            let mut content = Vec::new();
            std::io::Read::read_to_end(&mut entry, &mut content).expect("read");
            files.insert(name, content);
        }
        files
    };
    let mut first = None;
    let mut check = |how: &str, output: &str| {
        assert_eq!(output.trim_end(), "Loaded image: base:latest", "{how}");
        let images = world.rows(&["images"]);
        assert_eq!(images.len(), 1, "{how}");
        assert_eq!(images[0]["id"], image.id().as_str(), "{how}");
        world.ok(&["create", "--image", "base", "c"]);
        let tree = tree_digest(&world.tree("c"));
        assert_eq!(*first.get_or_insert_with(|| tree.clone()), tree, "{how}");
        world.ok(&["rm", "c"]);
        world.ok(&["rmi", "base"]);
        assert_eq!(world.places(), 0, "{how}: nothing is left");
    };
    for (how, path) in [("layout", &directory), ("archive", &archive), ("docker archive", &docker)] {
        check(how, &world.ok(&["load", "-q", path.to_str().expect("UTF-8")]));
    }
    let archive = fs::read(&archive).expect("read");
    check("standard input", &load_stdin(&world, &archive));
    check("gzip on standard input", &load_stdin(&world, &gzip(&archive)));
    check("zstd", &load_stdin(&world, &zstd::encode_all(&archive[..], 1).expect("zstd")));
    check("docker archive on standard input", &load_stdin(&world, &image.docker_archive()));
    check("both at once", &load_stdin(&world, &pack(&both)));
}

fn history_says_which_step_made_a_layer_whatever_its_size(ground: Ground) {
    let world = World::on(ground);
    let image = TestImage::new("steps")
        .files(Packing::Gzip, &[("a", b"a")])
        .step("ENV X=1")
        .files(Packing::Gzip, &[]) // a step that made a layer with nothing in it
        .step("LABEL y=2")
        .step("CMD [\"a\"]");
    world.load(&image);
    let layers: Vec<_> = world.rows(&["history", "steps"]).iter().map(|row| row["layer"].clone()).collect();
    let ids = image.diff_ids();
    assert_eq!(
        layers,
        [
            serde_json::Value::Null,
            serde_json::Value::Null,
            ids[1].clone().into(),
            serde_json::Value::Null,
            ids[0].clone().into()
        ]
    );
    assert_eq!(world.rows(&["layers"]).len(), 2);
    assert_eq!(bytes(&world.rows(&["images"])[0], "layers"), 2);
}

fn shared_layers_are_unpacked_once_and_stay_while_needed(ground: Ground) {
    let world = World::on(ground);
    let base = random_bytes(2 * MB);
    let one = TestImage::new("one").files(Packing::Gzip, &[("base", &base)]).files(Packing::Gzip, &[("1", b"1")]);
    let two = TestImage::new("two").files(Packing::Gzip, &[("base", &base)]).files(Packing::Gzip, &[("2", b"2")]);
    let path = world.files.path().join("both.tar");
    fs::write(&path, pack(&layout(&[&one, &two]))).expect("write");
    let answer = world.ask(&["load", path.to_str().expect("UTF-8")]);
    assert_eq!(answer.stdout, "Loaded image: one:latest\nLoaded image: two:latest\n");
    assert_eq!(answer.stderr.lines().filter(|line| line.ends_with("Load complete")).count(), 3);
    assert_eq!(answer.stderr.lines().filter(|line| line.ends_with("Already exists")).count(), 1);
    let layers = world.rows(&["layers"]);
    assert_eq!(layers.len(), 3);
    let base = layers.iter().find(|layer| layer["diff_id"] == one.diff_ids()[0].as_str()).expect("base");
    assert_eq!(base["images"], serde_json::json!(["one:latest", "two:latest"]));
    // Loaded again: nothing is unpacked.
    let again = world.ask(&["load", path.to_str().expect("UTF-8")]);
    assert_eq!(again.stderr.lines().filter(|line| line.ends_with("Already exists")).count(), 4);
    world.ok(&["rmi", "one"]);
    assert_eq!(world.rows(&["layers"]).len(), 2);
    world.ok(&["create", "--image", "two", "c"]);
    let error = world.fails(&["rmi", "two"]);
    assert!(error.contains("cannot remove image two: containers are based on it: c"), "{error}");
    assert_eq!(world.ok(&["rmi", "--force", "two"]), "Untagged: two:latest");
    assert_eq!(world.rows(&["images"])[0]["repository"], "<none>");
    world.ok(&["reset", "c"]);
    assert_eq!(fs::read_to_string(world.tree("c").join("2")).expect("read"), "2");
    world.ok(&["rm", "c"]);
    let id = world.rows(&["images"])[0]["id"].as_str().expect("text").to_string();
    assert_eq!(world.ok(&["rmi", &id]), format!("Deleted: {id}"));
    assert_eq!((world.places(), world.all_trees().len()), (0, 0));
}

fn names_move_and_go(ground: Ground) {
    let world = World::on(ground).with_base();
    world.ok(&["tag", "base", "localhost:5000/team/app:v1"]);
    world.ok(&["tag", "base", "other"]);
    assert_eq!(world.rows(&["images"]).len(), 3);
    assert_eq!(world.rows(&["images", "localhost:5000/team/app"]).len(), 1);
    assert_eq!(world.rows(&["images", "base:v9"]).len(), 0);
    let second = TestImage::new("other").files(Packing::Plain, &[("x", b"x")]);
    world.load(&second);
    let other = world.row_where(&["images"], "repository", "other");
    assert_eq!(other["id"], second.id().as_str(), "the name moved to the image loaded last");
    assert_eq!(world.ok(&["rmi", "localhost:5000/team/app:v1"]), "Untagged: localhost:5000/team/app:v1");
    let id = base_image().id();
    assert_eq!(world.ok(&["rmi", &id[..19]]), format!("Untagged: base:latest\nDeleted: {id}"));
    assert_eq!(world.places(), 1);
    for (bad, why) in [("Other", "repository"), ("x@sha256:00", "sha256"), ("a:b:c", "")] {
        assert!(world.fails(&["tag", "other", bad]).contains(why), "{bad}");
    }
}

fn import_makes_an_image_of_a_root_filesystem(ground: Ground) {
    let world = World::on(ground);
    let tar = world.files.path().join("root.tar.gz");
    fs::write(&tar, gzip(&crate::support::image::tar_of(&[("hello", b"world")]))).expect("write");
    let path = tar.to_str().expect("UTF-8");
    let id = world.ok(&["import", "-c", "CMD [\"/hello\"]", "-c", "ENV A=1", "-m", "by hand", path, "mine:v1"]);
    let shown: serde_json::Value = serde_json::from_str(&world.ok(&["inspect", "mine:v1"])).expect("JSON");
    assert_eq!(shown[0]["id"], id.as_str());
    assert_eq!(shown[0]["config"]["config"]["Cmd"], serde_json::json!(["/hello"]));
    assert_eq!(world.rows(&["history", "mine:v1"])[0]["comment"], "by hand");
    world.ok(&["create", "--image", "mine:v1", "c"]);
    assert_eq!(fs::read_to_string(world.tree("c").join("hello")).expect("read"), "world");
    // The same tar again shares its layer; a bad instruction is refused before anything is read.
    world.ok(&["import", path, "again"]);
    assert_eq!(world.rows(&["layers"]).len(), 1);
    assert!(world.fails(&["import", "-c", "RUN x", path]).contains("no such instruction"));
    assert_eq!(world.places(), 2);
}

fn what_real_tools_write_is_loaded(ground: Ground) {
    let world = World::on(ground);
    let files = world.files.path();
    let text = |path: &std::path::Path| path.to_str().expect("UTF-8").to_string();
    let layout_dir = text(&files.join("layout"));
    // Gzip alone: a docker archive can't carry zstd.
    let image = TestImage::new("base")
        .files(Packing::Gzip, &[("etc/", b""), ("etc/old", b"old"), ("etc/kept", b"kept")])
        .files(Packing::Gzip, &[("etc/.wh.old", b""), ("etc/new", b"new")]);
    image.write_layout(&files.join("layout"));
    let expected = {
        world.ok(&["load", "-q", &layout_dir]);
        world.ok(&["create", "--image", "base", "expected"]);
        tree_digest(&world.tree("expected"))
    };
    for form in ["oci-archive", "docker-archive", "oci"] {
        let out = text(&files.join(form));
        let to = format!("{form}:{out}:localhost/copied:{form}");
        run("skopeo", &["--insecure-policy", "copy", "-q", &format!("oci:{layout_dir}:base"), &to]);
        world.ok(&["load", "-q", &out]);
        let name = world
            .rows(&["images"])
            .iter()
            .filter_map(|row| row["tag"].as_str())
            .find(|tag| *tag == form)
            .map(|tag| format!("localhost/copied:{tag}"))
            .unwrap_or_else(|| panic!("{form} lost its name: {}", world.ok(&["images"])));
        world.ok(&["create", "--image", &name, form]);
        assert_eq!(tree_digest(&world.tree(form)), expected, "{form}");
    }
}

fn a_hundred_and_twenty_seven_layers_are_loaded(ground: Ground) {
    let world = World::on(ground);
    let mut image = TestImage::new("deep");
    for n in 0..127 {
        let name = format!("layer{n}");
        image = image.files(Packing::Gzip, &[("shared", name.as_bytes()), (&name, b"x")]);
    }
    world.load(&image);
    world.ok(&["create", "--image", "deep", "c"]);
    let tree = world.tree("c");
    assert_eq!(fs::read_to_string(tree.join("shared")).expect("read"), "layer126");
    assert_eq!(fs::read_dir(&tree).expect("read").count(), 128);
    world.ok(&["rm", "c"]);
    world.ok(&["rmi", "deep"]);
    assert_eq!(world.places(), 0);
    world.ok(&["gc"]);
    assert_eq!(bytes(&world.row(&["df"], "total"), "size"), 0);
}
