//! Damages, one after the other on one store: what is found, exactly; that saying so changes nothing; that repairing it leaves
//! a healthy store, and all that was whole as it was.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::hands::*;
use crate::picture;
use crate::store::{CONTAINERDS, DOCKERS, Store, found};
use crate::support::{arg, run};
use crate::world::Ground;

/// What a repair needs, and does.
pub(crate) enum Mend {
    /// All of it.
    Itself,
    /// With the archive.
    From,
    /// Nothing: this has to be done by hand.
    ByHand(fn(&Store)),
}

/// One kind of damage.
pub(crate) struct Kind {
    pub(crate) name: &'static str,
    /// Whether only a deep check finds it.
    pub(crate) deep: bool,
    pub(crate) mend: Mend,
    /// Does the damage; codes and objects of what has to be found.
    pub(crate) hurt: fn(&Store) -> Vec<(&'static str, String)>,
}

pub(crate) const fn kind(name: &'static str, mend: Mend, hurt: fn(&Store) -> Vec<(&'static str, String)>) -> Kind {
    Kind { name, deep: false, mend, hurt }
}

impl Kind {
    pub(crate) const fn deep(self) -> Self {
        Self { deep: true, ..self }
    }
}

const CONTAINERS: [&str; 4] = ["web", "long", "onit", "twin"];

/// What the trees of containers hold.
type Held = BTreeMap<&'static str, BTreeMap<PathBuf, String>>;
/// Which tree is at a path.
type Roots = BTreeMap<PathBuf, Option<u64>>;

fn trees(store: &Store) -> (Held, Roots) {
    let held = CONTAINERS.map(|name| (name, picture::of_tree(&store.world.tree(name))));
    let places = fs::read_dir(store.world.root().join("snapshots")).expect("read").flatten();
    // A view shows the tree of its layer.
    let view = store.place("view");
    let roots = places.map(|place| place.path()).filter(|place| *place != view).map(|place| place.join("fs"));
    let roots = roots.filter(|root| root.exists());
    (held.into(), roots.map(|root| (root.clone(), picture::identity(&root))).collect())
}

/// Every kind on one store.
pub(crate) fn each(store: &Store, kinds: &[Kind]) {
    assert_eq!(store.found(&["--deep"]), [], "before any damage");
    for kind in kinds {
        let name = kind.name;
        let (held, roots) = trees(store);
        let diff = store.world.rows(&["diff", "web"]);
        let mut expected: Vec<_> =
            (kind.hurt)(store).into_iter().map(|(code, object)| (code.to_string(), object)).collect();
        expected.sort();
        store.sync();
        let deep: &[&str] = if kind.deep { &["--deep"] } else { &[] };
        let sorted = |mut found: Vec<(String, String)>| {
            found.sort();
            found
        };

        let before = picture::of_all(store);
        let (_, report) = store.check(deep);
        assert_eq!(sorted(found(&report)), expected, "{name}: {report:#}");
        let archive = arg(&store.archive);
        store.check(&[&["--repair", "--dry-run", "--from", archive], deep].concat());
        assert_eq!(picture::of_all(store), before, "{name}: looking has changed something");

        let from: &[&str] = if matches!(kind.mend, Mend::From) { &["--from", archive] } else { &[] };
        let (_, report) = store.check(&[&["--repair"], from, deep].concat());
        if let Mend::ByHand(by_hand) = kind.mend {
            assert_eq!(sorted(found(&report)), expected, "{name}: {report:#}");
            assert_eq!(report["healthy"], false, "{name}: {report:#}");
            by_hand(store);
        } else {
            assert_eq!(report["healthy"], true, "{name}: {report:#}");
            let rows = report["findings"].as_array().expect("an array");
            let damage = rows.iter().filter(|row| row["severity"] == "damage");
            assert!(damage.into_iter().all(|row| row["repaired"] == true), "{name}: {report:#}");
        }
        store.sync();
        let (status, report) = store.check(&["--deep"]);
        assert_eq!((status, found(&report)), (0, vec![]), "{name}: {report:#}");

        let (held_now, roots_now) = trees(store);
        assert_eq!(held_now, held, "{name}: what containers hold");
        assert_eq!(store.world.rows(&["diff", "web"]), diff, "{name}: what web has changed");
        for (root, identity) in &roots {
            if Some(identity) != roots_now.get(root) {
                assert!(is_damaged(store, root, &expected), "{name}: {} has another tree", root.display());
            }
        }
    }
}

/// Whether the tree at `root` is that of a layer that was found damaged, in its tree.
fn is_damaged(store: &Store, root: &Path, expected: &[(String, String)]) -> bool {
    let rows = store.world.rows(&["layers"]);
    let row = rows.iter().find(|row| row["directory"] == root.to_str().expect("UTF-8"));
    let diff_id = row.and_then(|row| row["diff_id"].as_str()).unwrap_or_default();
    let trees = ["tree-missing", "tree-changed", "layer-differs", "layer-missing", "tree-unreadable"];
    expected.iter().any(|(code, object)| object == diff_id && trees.contains(&code.as_str()))
}

#[test]
fn records_of_btrfs() {
    each(
        &Store::on(Ground::SIMPLE),
        &[
            kind("the record of a container is gone", Mend::Itself, |store| {
                remove_record(&store.place("web"));
                vec![("record-missing", "web".into())]
            }),
            kind("the record of a layer is torn", Mend::Itself, |store| {
                let (diff_id, place) = store.layer(0);
                set_record(&place, b"{\"uuid\": \"");
                vec![("record-unreadable", diff_id)]
            }),
            kind("a record is another place's", Mend::Itself, |store| {
                let other = record(&store.place("twin")).to_string();
                set_record(&store.place("web"), other.as_bytes());
                vec![("record-unreadable", "web".into())]
            }),
            kind("the file of a long record is gone", Mend::Itself, |store| {
                fs::remove_file(store.place("long").join("record.json")).expect("unlink");
                vec![("record-unreadable", "long".into())]
            }),
            kind("a layer's record and the index are gone", Mend::Itself, |store| {
                let (diff_id, place) = store.layer(1);
                remove_record(&place);
                fs::remove_file(store.world.root().join("index.db")).expect("unlink");
                vec![("record-missing", diff_id), ("index-missing", "index.db".into())]
            }),
            kind("a second container has the name of another", Mend::Itself, |store| {
                store.world.ok(&["create", "--image", "base", "second"]);
                let place = store.place("second");
                let mut changed = record(&place);
                changed["content"]["container"]["name"] = "twin".into();
                set_record(&place, changed.to_string().as_bytes());
                reindex(store);
                vec![("name-taken", "twin".into())]
            }),
            kind("a spare is based on nothing", Mend::Itself, |store| {
                let uuid = "11111111-1111-4111-8111-111111111111";
                let place = store.world.root().join("snapshots").join(uuid);
                fs::create_dir(&place).expect("mkdir");
                store.world.make_tree(&place.join("fs"));
                let mut spare = record(&store.place("web"));
                spare["uuid"] = uuid.into();
                spare["parent"] = "22222222-2222-4222-8222-222222222222".into();
                spare["content"] = "spare".into();
                spare.as_object_mut().expect("an object").remove("group");
                set_record(&place, spare.to_string().as_bytes());
                reindex(store);
                vec![("parent-missing", uuid.into())]
            }),
            kind(
                "the place of a container with a snapshot is gone",
                Mend::ByHand(|store| {
                    let snapshots = store.world.rows(&["snapshots"]);
                    let parted =
                        snapshots.iter().find(|row| row["name"].as_str().is_some_and(|name| name.ends_with("@gone")));
                    store.world.ok(&["rm", parted.expect("it is listed")["name"].as_str().expect("text")]);
                    store.world.ok(&["gc"]);
                }),
                |store| {
                    store.world.ok(&["create", "--image", "base", "parted"]);
                    store.world.ok(&["snapshot", "parted", "gone"]);
                    let place = store.place("parted");
                    let uuid = uuid(&place);
                    delete_place(store, &place);
                    reindex(store);
                    vec![("snapshot-parted", format!("{uuid}/gone"))]
                },
            ),
        ],
    );
}

#[test]
fn the_index_of_btrfs() {
    each(
        &Store::on(Ground::SIMPLE),
        &[
            kind("the index is deleted", Mend::Itself, |store| {
                fs::remove_file(store.world.root().join("index.db")).expect("unlink");
                vec![("index-missing", "index.db".into())]
            }),
            kind("the index is cut off", Mend::Itself, |store| {
                let file =
                    fs::OpenOptions::new().write(true).open(store.world.root().join("index.db")).expect("open");
                file.set_len(5000).expect("truncate");
                vec![("index-torn", "index.db".into())]
            }),
            kind("a page of the index is overwritten", Mend::Itself, |store| {
                let index = store.world.root().join("index.db");
                let pages = fs::metadata(&index).expect("stat").len() / 4096;
                for page in 2..pages {
                    overwrite(&index, page * 4096, &[0x5a; 512]);
                }
                vec![("index-torn", "index.db".into())]
            }),
            kind("the index lacks a container", Mend::Itself, |store| {
                let uuid = uuid(&store.place("onit"));
                sql(store, &format!("DELETE FROM snapshots WHERE uuid = '{uuid}'"));
                vec![("index-behind", "index.db".into())]
            }),
            kind("the index has one too many", Mend::Itself, |store| {
                sql(
                    store,
                    "INSERT INTO snapshots SELECT '33333333-3333-4333-8333-333333333333', owner, kind, NULL, NULL, \
                parent, state, replace(record, uuid, '33333333-3333-4333-8333-333333333333') FROM snapshots \
                WHERE kind = 'container' AND name = 'twin'",
                );
                vec![("index-behind", "index.db".into())]
            }),
            kind("the index has another record", Mend::Itself, |store| {
                sql(
                    store,
                    "UPDATE snapshots SET name = 'renamed', record = replace(record, '\"name\":\"twin\"', \
                '\"name\":\"renamed\"') WHERE name = 'twin'",
                );
                vec![("index-behind", "index.db".into())]
            }),
            kind("a place is deleted by hand", Mend::Itself, |store| {
                store.world.ok(&["create", "--image", "base", "victim"]);
                delete_place(store, &store.place("victim"));
                vec![("index-behind", "index.db".into())]
            }),
        ],
    );
}

#[test]
fn what_the_dead_left_on_btrfs() {
    each(
        &Store::on(Ground::SIMPLE),
        &[
            kind("a place without anything", Mend::Itself, |store| {
                let uuid = "44444444-4444-4444-8444-444444444444";
                fs::create_dir(store.world.root().join("snapshots").join(uuid)).expect("mkdir");
                vec![("place-half-made", uuid.into())]
            }),
            kind("a container without a tree that nobody heard of", Mend::Itself, |store| {
                store.world.ok(&["create", "--image", "base", "victim"]);
                let place = store.place("victim");
                delete_tree(store, &place.join("fs"));
                sql(store, "UPDATE snapshots SET state = 'making' WHERE name = 'victim'");
                vec![("place-half-made", "victim".into())]
            }),
            kind("a tree that a layer was unpacked in", Mend::Itself, |store| {
                store.world.ok(&["create", "--image", "base", "victim"]);
                let place = store.place("victim");
                let mut work = record(&place);
                work["content"] = "work".into();
                set_record(&place, work.to_string().as_bytes());
                reindex(store);
                vec![("place-half-made", uuid(&place))]
            }),
            kind("half a snapshot of a container that is gone", Mend::Itself, |store| {
                store.world.ok(&["create", "--image", "base", "victim"]);
                store.world.ok(&["snapshot", "victim", "half"]);
                let (container, snapshot) = (store.place("victim"), uuid(&store.place("victim@half")));
                delete_place(store, &container);
                sql(store, &format!("DELETE FROM snapshots WHERE uuid = '{}'", uuid(&container)));
                sql(store, &format!("UPDATE snapshots SET state = 'making' WHERE uuid = '{snapshot}'"));
                vec![("place-half-made", format!("{}/half", uuid(&container)))]
            }),
            kind("a snapshot that nobody heard of, of a container that is gone", Mend::Itself, |store| {
                store.world.ok(&["create", "--image", "base", "victim"]);
                store.world.ok(&["snapshot", "victim", "begun"]);
                let (container, snapshot) = (store.place("victim"), store.place("victim@begun"));
                delete_tree(store, &snapshot.join("fs"));
                delete_place(store, &container);
                for place in [&container, &snapshot] {
                    sql(store, &format!("DELETE FROM snapshots WHERE uuid = '{}'", uuid(place)));
                }
                vec![("place-half-made", format!("{}/begun", uuid(&container)))]
            }),
            kind("half a removal", Mend::Itself, |store| {
                store.world.ok(&["create", "--image", "base", "victim"]);
                sql(store, "UPDATE snapshots SET state = 'removing' WHERE name = 'victim'");
                vec![("place-half-removed", "victim".into())]
            }),
            kind("half a reset", Mend::Itself, |store| {
                let place = store.place("web");
                store.world.clone_tree(&store.layer(0).1.join("fs"), &place.join("fs.new"));
                vec![("place-half-replaced", "web".into())]
            }),
        ],
    );
}

#[test]
fn images_of_btrfs() {
    fn image_file(store: &Store, name: &str) -> PathBuf {
        let files =
            fs::read_dir(store.world.root().join("images")).expect("read").flatten().map(|entry| entry.path());
        let mut files = files.filter(|path| path.extension().is_some_and(|extension| extension == "json"));
        files.find(|path| fs::read_to_string(path).expect("read").contains(name)).expect("the image's file")
    }
    fn blob(store: &Store, field: &str) -> PathBuf {
        let image = store.world.row_where(&["images"], "repository", "base");
        let digest = image[field].as_str().expect("a digest").trim_start_matches("sha256:").to_string();
        store.world.root().join("blobs/sha256").join(digest)
    }
    each(
        &Store::on(Ground::SIMPLE),
        &[
            kind("the file of an image is torn", Mend::Itself, |store| {
                let file = image_file(store, "base:latest");
                fs::write(&file, "{\"uuid\"").expect("write");
                vec![("image-unreadable", file.file_name().expect("a name").to_str().expect("UTF-8").into())]
            }),
            kind("the file of an image is gone", Mend::Itself, |store| {
                let id = store.world.row_where(&["images"], "repository", "base")["id"]
                    .as_str()
                    .expect("an ID")
                    .to_string();
                fs::remove_file(image_file(store, "base:latest")).expect("unlink");
                vec![("image-missing", id.trim_start_matches("sha256:")[..12].into())]
            }),
            kind("the directory of images is gone", Mend::Itself, |store| {
                let ids = ["base", "committed"].map(|name| {
                    let id = store.world.row_where(&["images"], "repository", name)["id"].to_string();
                    ("image-missing", id.trim_matches('"').trim_start_matches("sha256:")[..12].to_string())
                });
                fs::remove_dir_all(store.world.root().join("images")).expect("rm -r");
                let mut expected = vec![
                    ("directory-missing", "images".into()),
                    ("lock-missing", "images/lock".into()),
                    ("lock-missing", "images/load.lock".into()),
                ];
                expected.extend(ids);
                expected
            }),
            kind(
                "an image ends at a layer below its own",
                Mend::ByHand(|store| drop(store.world.ok(&["load", "-q", arg(&store.archive)]))),
                |store| {
                    let file = image_file(store, "base:latest");
                    let mut image: serde_json::Value =
                        serde_json::from_slice(&fs::read(&file).expect("read")).expect("JSON");
                    image["top"] = uuid(&store.layer(0).1).into();
                    fs::write(&file, image.to_string()).expect("write");
                    vec![("image-differs", "base:latest".into())]
                },
            ),
            kind("an image's configuration is torn", Mend::From, |store| {
                let path = blob(store, "id");
                let half = fs::read(&path).expect("read");
                fs::write(&path, &half[..half.len() / 2]).expect("write");
                vec![("config-unreadable", "base:latest".into())]
            }),
            kind("an image's configuration is gone", Mend::From, |store| {
                fs::remove_file(blob(store, "id")).expect("unlink");
                vec![("config-unreadable", "base:latest".into())]
            }),
        ],
    );
}

#[test]
fn manifests_of_btrfs() {
    each(
        &Store::on(Ground::SIMPLE),
        &[kind("an image's manifest is torn", Mend::From, |store| {
            let image = store.world.row_where(&["images"], "repository", "base");
            let digest = image["digest"].as_str().expect("a digest").trim_start_matches("sha256:").to_string();
            fs::write(store.world.root().join("blobs/sha256").join(digest), "{}").expect("write");
            vec![("manifest-unreadable", "base:latest".into())]
        })],
    );
}

#[test]
fn what_is_around_the_trees_of_btrfs() {
    each(
        &Store::on(Ground::SIMPLE),
        &[
            kind("others may look into the store", Mend::Itself, |store| {
                let path = store.world.root().join("snapshots");
                fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("chmod");
                vec![("directory-open", "snapshots".into())]
            }),
            kind("a lock file is gone", Mend::Itself, |store| {
                fs::remove_file(store.world.root().join("places.lock")).expect("unlink");
                vec![("lock-missing", "places.lock".into())]
            }),
            kind(
                "a file that isn't the store's",
                Mend::ByHand(|store| {
                    fs::remove_file(store.world.root().join("snapshots/notes.txt")).expect("unlink");
                }),
                |store| {
                    fs::write(store.world.root().join("snapshots/notes.txt"), "mine").expect("write");
                    vec![("file-foreign", "snapshots/notes.txt".into())]
                },
            ),
            kind(
                "a subvolume that isn't the store's",
                Mend::ByHand(|store| {
                    delete_tree(store, &store.place("web").join("mine"));
                }),
                |store| {
                    let path = store.place("web").join("mine");
                    store.world.make_tree(&path);
                    let place = format!("snapshots/{}/mine", uuid(&store.place("web")));
                    vec![("subvolume-foreign", place.clone()), ("file-foreign", place)]
                },
            ),
            kind(
                "what dockerd said is torn",
                Mend::ByHand(|store| {
                    fs::remove_dir_all(store.world.root().join("doors")).expect("rm -r");
                }),
                |store| {
                    let doors = store.world.root().join("doors");
                    fs::create_dir(&doors).expect("mkdir");
                    fs::set_permissions(&doors, fs::Permissions::from_mode(0o700)).expect("chmod");
                    fs::write(doors.join("docker.json"), "{\"homes\":").expect("write");
                    vec![("door-unreadable", "doors/docker.json".into())]
                },
            ),
            kind("the limit of a container is lifted behind our back", Mend::Itself, |store| {
                let group = qgroup(store, "web");
                run("btrfs", &["qgroup", "limit", "none", &group, arg(store.world.fs.path())]);
                vec![("limit-missing", "web".into())]
            }),
            kind(
                "the record of a container names another group",
                Mend::ByHand(|store| regroup(store, "web", -500)),
                |store| {
                    regroup(store, "web", 500);
                    vec![("charge-differs", "web".into())]
                },
            ),
            kind("a group of ours that no tree was given", Mend::Itself, |store| {
                let (prefix, id) = split(&qgroup(store, "web"));
                let group = format!("1/{}", prefix << 32 | (id + 1000));
                run("btrfs", &["qgroup", "create", &group, arg(store.world.fs.path())]);
                vec![("group-stale", (id + 1000).to_string())]
            }),
        ],
    );
}

/// The level-1 group that a container is charged to.
pub(crate) fn qgroup(store: &Store, name: &str) -> String {
    let id = picture::identity(&store.world.tree(name)).expect("a subvolume");
    let shown = run("btrfs", &["qgroup", "show", "-p", arg(store.world.fs.path())]);
    let line = shown.lines().find(|line| line.starts_with(&format!("0/{id} "))).expect("its own group");
    let words: Vec<_> = line.split_whitespace().collect();
    words.iter().find(|word| word.starts_with("1/")).expect("a parent").to_string()
}

/// Let the record of a container name a group this much further on.
fn regroup(store: &Store, name: &str, further: i64) {
    let place = store.place(name);
    let mut changed = record(&place);
    changed["group"] = (changed["group"].as_i64().expect("a number") + further).into();
    set_record(&place, changed.to_string().as_bytes());
    reindex(store);
}

fn split(group: &str) -> (u64, u64) {
    let number: u64 = group.trim_start_matches("1/").parse().expect("a number");
    (number >> 32, number & 0xffff_ffff)
}

/// Clients' trees are found by their keys.
pub(crate) fn clients() -> [(&'static str, &'static str); 2] {
    [("docker", DOCKERS), ("containerd", CONTAINERDS)]
}
