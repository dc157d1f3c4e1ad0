//! A store with everything in it, and the archive that its image came from.

use std::fs;
use std::path::PathBuf;

use reflinkd::engine::keyed::NewKeyed;
use reflinkd::engine::{Engine, Settings};
use reflinkd::store::Owner;
use serde_json::Value;

use crate::support::arg;
use crate::support::image::{Packing, TestImage, tar_of};
use crate::world::{Ground, World};

/// A key of Docker's that is a layer, and one of containerd's that is written to.
pub(crate) const DOCKERS: &str = "dddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddd";
pub(crate) const CONTAINERDS: &str = "cccc";

pub(crate) struct Store {
    pub(crate) world: World,
    pub(crate) archive: PathBuf,
}

impl Store {
    /// An image of two layers, containers of it with own data, one with a limit, one with a record too long for an attribute,
    /// one that is a view, a snapshot, a commit with a container on it, and what clients have.
    pub(crate) fn on(ground: Ground) -> Self {
        let world = World::on(ground);
        world.fs.no_access_times();
        let image = TestImage::new("base")
            .files(
                Packing::Gzip,
                &[("etc/", b""), ("etc/passwd", b"root:x:0:0::/root:/bin/sh\n"), ("etc/old", b"old")],
            )
            .step("ENV A=1")
            .files(Packing::Zstd, &[("etc/.wh.old", b""), ("etc/new", b"new\n"), ("data", &[7; 100_000])]);
        let archive = world.files.path().join("base.tar");
        image.write_archive(&archive);
        world.ok(&["load", "-q", arg(&archive)]);
        let limit = ground.limit(&["--size-limit", "50MB"]);
        world.ok(&[&["create", "--image", "base", "web"], limit].concat());
        fs::write(world.tree("web").join("own"), "web's own").expect("write");
        fs::write(world.tree("web").join("etc/new"), "changed").expect("write");
        let label = format!("long={}", "x".repeat(5000));
        world.ok(&["create", "--image", "base", "--label", &label, "long"]);
        world.ok(&["create", "--image", "base", "--read-only", "view"]);
        world.ok(&["snapshot", "web", "then"]);
        world.ok(&["commit", "web", "committed"]);
        world.ok(&["create", "--image", "committed", "onit"]);
        world.ok(&["clone", "web", "twin"]);
        fs::write(world.tree("twin").join("own"), "the twin's").expect("write");
        let store = Self { world, archive };
        store.add_clients();
        store.sync();
        store
    }

    fn add_clients(&self) {
        let engine = self.engine();
        let docker = engine.keyspace(Owner::docker(), 1, Default::default());
        docker.reserve(&NewKeyed { key: DOCKERS, ..NewKeyed::default() }).expect("reserve");
        docker.apply(DOCKERS, None, &mut &*tar_of(&[("docker", b"'s")])).expect("apply");
        let containerd = engine.keyspace(Owner::containerd("default"), 1, Default::default());
        containerd.prepare(&NewKeyed { key: CONTAINERDS, ..NewKeyed::default() }).expect("prepare");
    }

    /// The engine in this process.
    pub(crate) fn engine(&self) -> Engine {
        let settings = Settings { root: self.world.root().to_path_buf(), tend: false, ..Settings::default() };
        Engine::open(settings).expect("open")
    }

    /// `check` with these arguments: its exit code, and what it prints as JSON.
    pub(crate) fn check(&self, args: &[&str]) -> (i32, Value) {
        let args = [&["check", "--quiet", "--json"], args].concat();
        let answer = self.world.ask(&args);
        let status = answer.status.expect("not killed");
        assert!(status == 0 || status == 3, "{args:?}: {status}\n{}{}", answer.stdout, answer.stderr);
        let report: Value = serde_json::from_str(&answer.stdout).expect("JSON");
        assert_eq!(report["healthy"], status == 0, "{report:#}");
        (status, report)
    }

    /// Codes and objects of what a check finds.
    pub(crate) fn found(&self, args: &[&str]) -> Vec<(String, String)> {
        found(&self.check(args).1)
    }

    pub(crate) fn sync(&self) {
        crate::support::run("sync", &["-f", arg(self.world.fs.path())]);
    }

    /// Unmount and mount again, the view's own mount too.
    pub(crate) fn remount(&self, options: &str) {
        crate::support::run("umount", &[arg(&self.world.tree("view"))]);
        self.world.fs.remount(options);
    }

    /// The layer at this place of the image's chain, the lowest first, or of the commit: diff ID and place.
    pub(crate) fn layer(&self, at: usize) -> (String, PathBuf) {
        let rows = self.world.rows(&["layers"]);
        let layers: Vec<_> = rows.iter().filter(|row| row["diff_id"].is_string()).collect();
        let directory = PathBuf::from(layers[at]["directory"].as_str().expect("a path"));
        (
            layers[at]["diff_id"].as_str().expect("text").to_string(),
            directory.parent().expect("a place").to_path_buf(),
        )
    }

    /// The place of a container, or of a snapshot.
    pub(crate) fn place(&self, name: &str) -> PathBuf {
        self.world.tree(name).parent().expect("a place").to_path_buf()
    }

    /// The place of a client's key.
    pub(crate) fn key_place(&self, owner: &str, key: &str) -> PathBuf {
        let rows = self.world.rows(&["layers"]);
        let row = rows.iter().find(|row| row["owner"] == owner && row["key"] == key);
        let row = row.unwrap_or_else(|| panic!("no {key} in {rows:#?}"));
        let directory = PathBuf::from(row["directory"].as_str().expect("a path"));
        directory.parent().expect("a place").to_path_buf()
    }
}

/// Codes and objects, without what any removal leaves to `gc`.
pub(crate) fn found(report: &Value) -> Vec<(String, String)> {
    let rows = report["findings"].as_array().expect("an array").iter();
    let text = |value: &Value| value.as_str().expect("text").to_string();
    let of_removals = ["group-stale", "charge-dead", "trash-left"].map(Value::from);
    let rows = rows.filter(|row| row["severity"] == "damage" || !of_removals.contains(&row["code"]));
    rows.map(|row| (text(&row["code"]), text(&row["object"]))).collect()
}
