//! The hostile layers of the unpacker's tests as layers of images, on top of one whose symlinks lead out.

use std::fs;
use std::path::Path;

use crate::cases::{self, EVIL, Fate};
use crate::guard::{Guard, UNMEASURED};
use crate::support::image::{Packing, TestImage, pack};
use crate::world::World;

/// The root directory of the image's topmost tree.
fn top(world: &World) -> std::path::PathBuf {
    let layers = world.rows(&["layers"]);
    let top = layers.last().expect("layers");
    world.root().join(top["directory"].as_str().expect("a path"))
}

#[test]
fn every_hostile_layer_meets_its_fate() {
    let guard = Guard::new();
    let lower = cases::lower(guard.canary().to_str().expect("UTF-8"));
    let path = guard.input("archive.tar");
    for (number, case) in cases::all().into_iter().enumerate() {
        let packing = [Packing::Plain, Packing::Gzip, Packing::Zstd][number % 3];
        let image = TestImage::new("evil").tar(Packing::Gzip, lower.clone()).tar(packing, case.tar);
        fs::write(&path, pack(&image.layout())).expect("write");
        let what = case.what;
        match case.fate {
            Fate::Refused(why) => {
                let error = guard.refuses(&what, &path, &[], why, UNMEASURED);
                let layer = &image.diff_ids()[1]["sha256:".len()..][..12];
                assert!(
                    error.starts_with(&format!("reflinkd: cannot load image evil:latest: layer {layer}: ")),
                    "{error}"
                );
            }
            Fate::Contained(name) => guard.accepts(&what, &path, &[], UNMEASURED, |guard| {
                assert!(top(&guard.world).join(name).symlink_metadata().is_ok(), "{what}: {name}");
            }),
            Fate::Written(name) => guard.accepts(&what, &path, &[], UNMEASURED, |guard| {
                assert_written(&what, &top(&guard.world), name);
            }),
        }
    }
}

/// The file is there, and no symlink is on its way.
fn assert_written(what: &str, root: &Path, name: &str) {
    let mut at = root.to_path_buf();
    for part in name.split('/') {
        at.push(part);
        assert!(
            !at.symlink_metadata().unwrap_or_else(|e| panic!("{what}: {name}: {e}")).is_symlink(),
            "{what}: {name}"
        );
    }
    assert_eq!(fs::read_to_string(&at).expect("read"), EVIL, "{what}: {name}");
}
