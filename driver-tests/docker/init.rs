//! A container whose user moves or removes what dockerd put into it, and what it has moved itself: all of that is in the
//! layer that is committed.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use crate::serve::Serve;
use crate::support::image::tar_of;
use crate::world::{Ground, World};

/// What is done where a directory was.
type Edit = fn(&Path);

on_btrfs_and_xfs! {
    what_was_moved_is_in_the_layer
    directories_with_files_of_dockerd_may_go
}

/// The layer, and a container on it in which dockerd made its files.
fn container(serve: &Serve, name: &str) -> std::path::PathBuf {
    let init = format!("{name}-init");
    serve.create_rw(&init, "image");
    let root = serve.get(&init);
    fs::remove_file(root.join("etc/hosts")).expect("remove");
    fs::create_dir_all(root.join("dev/pts")).expect("mkdir");
    for file in ["etc/hosts", "etc/hostname", "dev/console", ".dockerenv"] {
        fs::write(root.join(file), b"").expect("write");
    }
    serve.create_rw(name, &init);
    let root = serve.get(name);
    assert_eq!((serve.changes(name, &init), serve.diff_size(name, &init)), (vec![], 0), "{name}");
    root
}

/// Commit it as dockerd does; the root of the new layer.
fn committed(serve: &Serve, name: &str) -> std::path::PathBuf {
    let (init, layer) = (format!("{name}-init"), format!("{name}-committed"));
    let tar = serve.diff(name, &init);
    assert_eq!(serve.layer(&layer, "image", &tar), serve.diff_size(name, &init), "{name}");
    serve.get(&layer)
}

fn serve(world: &World) -> Serve {
    let serve = Serve::start(world);
    let files: [(&str, &[u8]); 5] = [
        ("etc/hosts", b"image"),
        ("etc/passwd", b"root"),
        ("lib/one/a", b"1"),
        ("lib/two/a", b"of two"),
        ("lib/b", b"22"),
    ];
    serve.layer("image", "", &tar_of(&files));
    serve
}

fn what_was_moved_is_in_the_layer(ground: Ground) {
    let world = World::on(ground);
    let serve = serve(&world);
    let read = |root: &Path, path: &str| fs::read_to_string(root.join(path)).expect(path);

    let root = container(&serve, "moved");
    fs::rename(root.join("lib"), root.join("lib2")).expect("rename");
    fs::rename(root.join("dev"), root.join("dev2")).expect("rename");
    let root = committed(&serve, "moved");
    assert_eq!([read(&root, "lib2/b"), read(&root, "lib2/one/a")], ["22", "1"]);
    assert_eq!(read(&root, "dev2/console"), "");
    assert!(root.join("dev2/pts").is_dir() && !root.join("lib").exists());

    let root = container(&serve, "over");
    fs::remove_dir_all(root.join("lib/two")).expect("remove");
    fs::rename(root.join("lib/one"), root.join("lib/two")).expect("rename");
    let root = committed(&serve, "over");
    assert_eq!(read(&root, "lib/two/a"), "1");
    assert!(!root.join("lib/one").exists());
}

fn directories_with_files_of_dockerd_may_go(ground: Ground) {
    let world = World::on(ground);
    let serve = serve(&world);
    let edits: [(&str, Edit); 4] = [
        ("gone", |_| {}),
        ("file", |path| fs::write(path, "x").expect("write")),
        ("link", |path| symlink("lib", path).expect("symlink")),
        ("moved", |path| fs::rename(path.with_file_name("lib"), path).expect("rename")),
    ];
    for (name, edit) in edits {
        for directory in ["etc", "dev"] {
            let name = format!("{name}-{directory}");
            let root = container(&serve, &name);
            fs::remove_dir_all(root.join(directory)).expect("remove");
            edit(&root.join(directory));
            let told = serve.changes(&name, &format!("{name}-init"));
            assert!(told.iter().any(|(path, _)| *path == format!("/{directory}")), "{name}: {told:?}");
            let (layer, names) = (committed(&serve, &name), |root: &Path| {
                let names = fs::read_dir(root).into_iter().flatten().map(|entry| entry.expect("entry").file_name());
                names.collect::<std::collections::BTreeSet<_>>()
            });
            let (is, was) = (layer.join(directory), root.join(directory));
            let kind = |path: &Path| fs::symlink_metadata(path).map(|there| there.file_type()).ok();
            assert_eq!((kind(&is), names(&is)), (kind(&was), names(&was)), "{name}");
        }
    }
}
