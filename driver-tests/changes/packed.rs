//! What a container has changed, as a layer, makes the same tree of its parent: after random edits, on every backend.

use std::collections::BTreeMap;
use std::path::Path;

use reflinkd::backend::changes::Changes;
use reflinkd::backend::{Access, Tree};
use reflinkd::engine::delta;
use reflinkd::layer::pack::{self, Packed, pack_tree};
use reflinkd::layer::sink::{Plain, Sink};
use reflinkd::layer::{IdMaps, Limits, unpack};

use crate::edits::{Editor, Edits, FILLING, STEPS, seeds};
use crate::fixture::Fixture;
use crate::support::digest::assert_same;
use crate::support::{EntryFacts, tree_digest};

/// Each tree is compared after so many times [`STEPS`] edits.
const ROUNDS: usize = 3;

/// All of a tree that a layer can carry.
fn carried(root: &Path) -> BTreeMap<Vec<u8>, EntryFacts> {
    let mut tree = tree_digest(root);
    tree.retain(|_, facts| facts.kind != "socket");
    for facts in tree.values_mut() {
        // XFS lists each ACL a second time; the label is the host's.
        facts.xattrs.retain(|name, _| !name.starts_with(b"trusted.SGI_ACL_") && name != b"security.selinux");
        facts.flags = 0;
    }
    tree
}

fn layer_of(root: &Path, changes: &Changes) -> (Vec<u8>, Packed) {
    let mut tar = Plain(Vec::new());
    let packed =
        pack::pack(root, &delta::items(changes), &IdMaps::default(), u64::MAX, &mut tar, &|| false).expect("pack");
    assert_eq!(packed.bytes, tar.0.len() as u64);
    (tar.0, packed)
}

fn whole(root: &Path) -> Vec<u8> {
    let mut tar = Plain(Vec::new());
    pack_tree(root, u64::MAX, &mut tar, &|| false).expect("pack the whole tree");
    tar.0
}

/// What says of each piece whether it is the file's, as the file has it.
struct Checked<'a>(&'a Path);

impl Sink for Checked<'_> {
    fn literal(&mut self, _: &[u8]) -> reflinkd::Result<()> {
        Ok(())
    }

    fn content(&mut self, path: &[u8], offset: u64, bytes: &[u8]) -> reflinkd::Result<()> {
        use std::os::unix::fs::FileExt;
        let file = std::fs::File::open(crate::support::digest::full(self.0, path)).expect("open");
        let mut there = vec![0; bytes.len()];
        file.read_exact_at(&mut there, offset).expect("read");
        assert!(there == bytes, "{} at {offset}", path.escape_ascii());
        Ok(())
    }
}

fn check(fixture: &Fixture, layer: &Tree, container: &Tree, empty: &Tree) {
    fixture.agreed("the feed", layer, container);
    let changes = fixture.feed(Some(layer), container, false);
    let root = container.root();
    let expected = carried(&root);
    let (tar, packed) = layer_of(&root, &changes);
    assert!(layer_of(&root, &changes) == (tar.clone(), packed), "packing twice gives the same");
    let counted = pack::count(&root, &delta::items(&changes), &|| false).expect("count").file_bytes;
    assert_eq!(counted, packed.file_bytes, "counting them is reading them");
    pack::pack(&root, &delta::items(&changes), &IdMaps::default(), u64::MAX, &mut Checked(&root), &|| false)
        .expect("pack");
    let copy = fixture.container(layer);
    let summary = unpack(&mut &tar[..], &copy.root(), &Limits::default(), &|| false).expect("unpack");
    assert_eq!(summary.entries, packed.entries, "no parent is missing, and nothing else is made");
    assert_eq!((summary.bytes, summary.foreign_attributes), (packed.file_bytes, 0));
    assert_same("the layer on its parent", &carried(&copy.root()), &expected);
    fixture.backend.destroy(&copy).expect("destroy");

    let tar = whole(&root);
    let copy = fixture.tree();
    fixture.backend.clone_tree(empty, &copy, Access::Writable, None).expect("clone");
    unpack(&mut &tar[..], &copy.root(), &Limits::default(), &|| false).expect("unpack");
    assert_same("the whole tree", &carried(&copy.root()), &expected);
    fixture.backend.destroy(&copy).expect("destroy");
}

pub(crate) fn edits_as_layers(fixture: &Fixture, most: u64) {
    let (empty, unused) = fixture.pair(|_| ());
    fixture.backend.destroy(&unused).expect("destroy");
    for seed in seeds(most) {
        let (layer, container) = fixture.pair(|root| {
            let mut editor = Editor::new(root, seed, Edits::WithReflinks);
            (0..FILLING).for_each(|_| editor.step());
        });
        let mut editor = Editor::new(&container.root(), seed + 1_000_000, Edits::WithReflinks);
        for round in 0..ROUNDS {
            (0..STEPS).for_each(|_| editor.step());
            let checked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                check(fixture, &layer, &container, &empty);
            }));
            if let Err(panic) = checked {
                // Beside the panic's own message, which says what differs.
                #[allow(clippy::print_stderr)]
                {
                    eprintln!("CHANGES_SEED={seed} round {round}\n{}", editor.log.join("\n"));
                }
                std::panic::resume_unwind(panic);
            }
        }
        fixture.backend.destroy(&container).expect("destroy");
        fixture.backend.destroy(&layer).expect("destroy");
    }
}
