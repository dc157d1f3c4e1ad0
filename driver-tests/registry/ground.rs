//! A store that pulls, with nothing of the tester's own logins and proxies.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::server::{Content, Server};
use crate::support::image::{Packing, TestImage};
use crate::support::{Answer, MIB, reflinkd_command};
use crate::world::World;

pub(crate) struct Ground {
    pub(crate) world: World,
    empty: Vec<String>,
}

impl Ground {
    pub(crate) fn new() -> Self {
        Self::of_size(2048 * MIB)
    }

    /// On a filesystem of that many bytes.
    pub(crate) fn of_size(size: u64) -> Self {
        Self::over(World::of_size(size, crate::world::Ground::SIMPLE))
    }

    /// In a pool that believes to have more than its host.
    pub(crate) fn in_pool() -> Self {
        let world = World::of_size(2048 * MIB, crate::world::Ground::Xfs);
        world.ok(&["init", "--pool-fs", "btrfs", "--pool-size", "3GB"]);
        Self::over(world)
    }

    fn over(world: World) -> Self {
        world.ok(&["images"]);
        fs::create_dir(world.files.path().join("home")).expect("mkdir");
        let mut ground = Self { world, empty: Vec::new() };
        ground.empty = ground.world.stored();
        ground
    }

    /// The user's home directory.
    pub(crate) fn home(&self) -> PathBuf {
        self.world.files.path().join("home")
    }

    /// A configuration file, by its text.
    pub(crate) fn config(&self, name: &str, text: &str) -> PathBuf {
        let path = self.world.files.path().join(name);
        fs::write(&path, text).expect("write");
        path
    }

    /// `reflinkd ARGS`, as a user with that home.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = reflinkd_command(self.world.root(), args);
        for name in ["HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY", "https_proxy", "http_proxy", "no_proxy"] {
            command.env_remove(name);
        }
        for name in ["REGISTRY_AUTH_FILE", "DOCKER_CONFIG", "XDG_CONFIG_HOME", "REFLINKD_CONFIG"] {
            command.env_remove(name);
        }
        command.env("HOME", self.home()).env("XDG_RUNTIME_DIR", self.home().join("run")).stdin(Stdio::null());
        command
    }

    pub(crate) fn ask(&self, args: &[&str]) -> Answer {
        answer(&mut self.command(args))
    }

    #[track_caller]
    pub(crate) fn ok(&self, args: &[&str]) -> String {
        let answer = self.ask(args);
        assert_eq!(answer.status, Some(0), "reflinkd {args:?}: {}", answer.stderr);
        answer.stdout.trim_end().to_string()
    }

    /// A file of a container made of an image, which is removed again.
    #[track_caller]
    pub(crate) fn file(&self, image: &str, path: &str) -> String {
        self.ok(&["create", "--image", image, "looked-at"]);
        let tree = PathBuf::from(self.ok(&["mount", "looked-at"]));
        let text = fs::read_to_string(tree.join(path)).expect("read");
        self.ok(&["rm", "looked-at"]);
        text
    }

    /// Remove all images; nothing may be left then.
    #[track_caller]
    pub(crate) fn assert_empty_again(&self) {
        // One with several names has as many rows.
        let rows = self.world.rows(&["images"]);
        let ids: BTreeSet<_> = rows.iter().map(|image| image["id"].as_str().expect("an ID")).collect();
        for id in ids {
            self.ok(&["rmi", "-f", id]);
        }
        self.assert_untouched("after all was removed");
    }

    /// The store is as it was at first.
    #[track_caller]
    pub(crate) fn assert_untouched(&self, when: &str) {
        self.ok(&["gc"]);
        assert_eq!(self.world.stored(), self.empty, "{when}");
    }
}

pub(crate) fn answer(command: &mut Command) -> Answer {
    let output = command.output().expect("run the built reflinkd");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("reflinkd prints UTF-8");
    Answer { status: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
}

/// An image of three layers, packed in three ways; the lowest is the same in all, `what` is in the others.
pub(crate) fn image(what: &str) -> TestImage {
    let base: Vec<u8> = (0..300_000_u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    let middle = format!("middle of {what}");
    TestImage::new(what)
        .files(Packing::Gzip, &[("etc/", b""), ("etc/base", &base)])
        .files(Packing::Zstd, &[("etc/", b""), ("etc/middle", middle.as_bytes())])
        .files(Packing::Plain, &[("etc/", b""), ("etc/top", what.as_bytes())])
}

/// A good registry that has an image as `team/app:v1`.
pub(crate) fn good(image: &TestImage) -> Server {
    let content = Content::default().image("team/app", "v1", image);
    Server::start(move |asked| content.answer(asked))
}
