//! `gc` and what dockerd doesn't know any more, by calls made by hand.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::support::image::tar_of;
use crate::support::{Process, reflinkd_command};
use crate::world::{Ground, World};

on_btrfs_and_xfs! {
    what_dockerd_lost_is_named_and_cleared
}

const KNOWN: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
const LOST: &str = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";

/// A `reflinkd serve`, and how dockerd asks it.
struct Served {
    _serve: Process,
    // Paths of sockets are short.
    directory: tempfile::TempDir,
}

impl Served {
    fn of(world: &World) -> Self {
        let directory = tempfile::tempdir_in("/run").expect("mkdir");
        let mut command = reflinkd_command(world.root(), &["serve", "--docker"]);
        command.arg(directory.path().join("s")).stdin(Stdio::null()).stderr(Stdio::null());
        let served = Self { _serve: Process::spawn(&mut command), directory };
        let patience = Instant::now() + Duration::from_secs(60);
        while UnixStream::connect(served.socket()).is_err() {
            assert!(Instant::now() < patience, "serve doesn't answer");
            std::thread::sleep(Duration::from_millis(20));
        }
        served
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("s")
    }

    /// One call that has to succeed; the body of its answer.
    fn call(&self, call: &str, body: &[u8]) -> String {
        let mut connection = UnixStream::connect(self.socket()).expect("connect");
        let length = body.len();
        write!(
            connection,
            "POST /{call} HTTP/1.1\r\nHost: \r\nConnection: close\r\nContent-Length: {length}\r\n\r\n"
        )
        .and_then(|()| connection.write_all(body))
        .expect("ask");
        let mut answer = String::new();
        connection.read_to_string(&mut answer).expect("an answer");
        assert!(answer.starts_with("HTTP/1.1 200 "), "{call}: {answer}");
        answer.split_once("\r\n\r\n").expect("a body").1.to_string()
    }

    fn begin(&self, home: &Path) {
        self.call("GraphDriver.Init", format!(r#"{{"Home": "{}", "Opts": null}}"#, home.display()).as_bytes());
    }

    fn load(&self, key: &str) {
        self.call("GraphDriver.Create", format!(r#"{{"ID": "{key}", "Parent": ""}}"#).as_bytes());
        self.call(&format!("GraphDriver.ApplyDiff?id={key}&parent="), &tar_of(&[("file", &[7; 100_000])]));
    }
}

fn what_dockerd_lost_is_named_and_cleared(ground: Ground) {
    let world = World::on(ground);
    world.ok(&["init"]);
    let served = Served::of(&world);
    let data = world.files.path().join("docker");
    let layers = data.join("image/plugin/layerdb/sha256");
    fs::create_dir_all(layers.join(KNOWN)).expect("mkdir");
    fs::write(layers.join(KNOWN).join("cache-id"), KNOWN).expect("write");
    served.begin(&data.join("plugin"));
    served.load(KNOWN);
    served.load(LOST);
    assert!(world.rows(&["gc", "--dry-run"]).is_empty(), "this dockerd may write it down yet");
    served.begin(&data.join("plugin"));

    fs::rename(&data, data.with_extension("aside")).expect("rename");
    let answer = world.ask(&["gc"]);
    assert_eq!(answer.status, Some(0));
    let warnings: Vec<_> = answer.stderr.lines().filter(|line| line.starts_with("warning: ")).collect();
    assert!(matches!(warnings[..], [one] if one.contains(data.to_str().expect("UTF-8")) && one.contains("hint: ")));
    fs::rename(data.with_extension("aside"), &data).expect("rename");

    let row = world.row(&["gc", "--dry-run"], "docker-layer");
    assert!(row["id"] == LOST && row["size"].as_u64() >= Some(100_000), "{row}");
    assert!(row["reason"].as_str().is_some_and(|reason| reason.contains("dockerd")), "{row}");
    let ids = |rows: Vec<serde_json::Value>| rows.into_iter().map(|row| row["id"].clone()).collect::<Vec<_>>();
    assert_eq!(ids(world.rows(&["gc"])), [LOST]);
    assert_eq!(world.all_trees().len(), 1);
    assert!(world.rows(&["gc", "--dry-run"]).is_empty());
    assert_eq!(served.call("GraphDriver.Exists", format!(r#"{{"ID": "{LOST}"}}"#).as_bytes()), r#"{"Exists":false}"#);
    assert_eq!(served.call("GraphDriver.Exists", format!(r#"{{"ID": "{KNOWN}"}}"#).as_bytes()), r#"{"Exists":true}"#);
    served.call("GraphDriver.Remove", format!(r#"{{"ID": "{KNOWN}"}}"#).as_bytes());
    world.ok(&["gc"]);
    assert!(world.all_trees().is_empty() && world.remains().is_empty());
}
