//! What a pull fetches, and how often.

use std::process::Stdio;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::json;

use crate::ground::{Ground, answer, good, image};
use crate::server::{Content, INDEX, Reply, Server};
use crate::support::image::{Packing, TestImage, sha256};
use crate::support::{MIB, Process, random_bytes, run};

fn blob_path(image: &TestImage, layer: usize) -> String {
    format!("/v2/team/app/blobs/sha256:{}", sha256(&image.layers[layer].blob))
}

#[test]
fn an_image_is_pulled_once_and_used() {
    let ground = Ground::new();
    let image = image("one");
    let server = good(&image);
    let name = format!("{}/team/app:v1", server.address());
    let pulled = ground.ask(&["pull", &name]);
    assert_eq!(pulled.status, Some(0), "{}", pulled.stderr);
    let digest = sha256(&image.manifest_bytes());
    let status = |status: &str| format!("Digest: sha256:{digest}\nStatus: {status} for {name}\n{name}\n");
    assert_eq!(pulled.stdout, status("Downloaded newer image"));
    assert!(pulled.stderr.starts_with("v1: Pulling from team/app\n"), "{}", pulled.stderr);
    for diff_id in image.diff_ids() {
        for what in ["Pulling fs layer", "Download complete", "Pull complete"] {
            let line = format!("{}: {what}", &diff_id[7..19]);
            assert!(pulled.stderr.lines().any(|said| said == line), "no {line:?} in {}", pulled.stderr);
        }
    }
    for layer in 0..3 {
        assert_eq!(server.count(&blob_path(&image, layer)), 1, "layer {layer}");
    }
    assert_eq!(ground.file(&name, "etc/top"), "one");
    assert_eq!(ground.world.rows(&["images"])[0]["id"], image.id());
    let again = ground.ask(&["pull", &name]);
    assert_eq!(again.stdout, status("Image is up to date"));
    assert_eq!(again.stderr.matches("Already exists").count(), 3, "{}", again.stderr);
    assert_eq!(ground.ok(&["pull", "-q", &name]), name);
    for layer in 0..3 {
        assert_eq!(server.count(&blob_path(&image, layer)), 1, "layer {layer} again");
    }
    // By its digest it is another name of the same, whatever tag is said beside.
    for by_digest in [format!("{}/team/app@sha256:{digest}", server.address()), format!("{name}@sha256:{digest}")] {
        let kept = format!("{}/team/app@sha256:{digest}", server.address());
        assert_eq!(ground.ok(&["pull", "-q", &by_digest]), kept);
        assert_eq!(ground.file(&by_digest, "etc/top"), "one");
    }
    ground.assert_empty_again();
}

#[test]
fn layers_that_are_here_are_not_fetched() {
    let ground = Ground::new();
    let (first, second) = (image("one"), image("two"));
    let content = Content::default().image("team/app", "v1", &first).image("team/app", "v2", &second);
    let server = Server::start(move |asked| content.answer(asked));
    ground.ok(&["pull", "-q", &format!("{}/team/app:v1", server.address())]);
    let name = format!("{}/team/app:v2", server.address());
    ground.ok(&["pull", "-q", &name]);
    let counts: Vec<_> = (0..3).map(|layer| server.count(&blob_path(&second, layer))).collect();
    assert_eq!(counts, [1, 1, 1], "the base was fetched for the first image only");
    assert_eq!(server.count(&blob_path(&first, 2)), 1);
    assert_eq!(ground.file(&name, "etc/top"), "two");
    ground.assert_empty_again();
}

#[test]
fn what_breaks_off_goes_on_from_there() {
    let ground = Ground::new();
    let image = image("one");
    let content = Content::default().image("team/app", "v1", &image);
    let (base, middle, top) = (blob_path(&image, 0), blob_path(&image, 1), blob_path(&image, 2));
    let breaks = AtomicUsize::new(0);
    let server = Server::start(move |asked| {
        let reply = content.answer(asked);
        if asked.path == base && breaks.fetch_add(1, Ordering::SeqCst) < 2 {
            return reply.cut(100_000);
        }
        if asked.path == middle && asked.header("range").is_empty() {
            return reply.cut(10);
        }
        // This one knows no ranges: what it breaks off it begins anew.
        if asked.path == top {
            let whole = content.answer(&crate::server::Asked { headers: Default::default(), ..asked.clone() });
            return if asked.header("range").is_empty() { whole.cut(700) } else { whole };
        }
        reply
    });
    let name = format!("{}/team/app:v1", server.address());
    ground.ok(&["pull", "-q", &name]);
    let asked = server.asked();
    let ranges = |layer| -> Vec<String> {
        let path = blob_path(&image, layer);
        asked.iter().filter(|asked| asked.path == path).map(|asked| asked.header("range").to_string()).collect()
    };
    assert_eq!(ranges(0), ["", "bytes=100000-", "bytes=200000-"]);
    assert_eq!(ranges(1), ["", "bytes=10-"]);
    assert_eq!(ranges(2), ["", "bytes=700-"]);
    assert_eq!(ground.file(&name, "etc/middle"), "middle of one");
    ground.assert_empty_again();
}

#[test]
fn of_an_index_this_machines_image_is_taken() {
    let ground = Ground::new();
    let image = image("one");
    let manifest = image.manifest_bytes();
    let config: serde_json::Value = serde_json::from_slice(&image.config_bytes()).expect("JSON");
    let entry = |os: &str, architecture: &str, digest: String| {
        let size = manifest.len();
        json!({ "mediaType": crate::server::MANIFEST, "digest": format!("sha256:{digest}"), "size": size,
                "platform": { "os": os, "architecture": architecture } })
    };
    let host = config["architecture"].as_str().expect("text");
    let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [
        entry("windows", host, "0".repeat(64)),
        entry("linux", "s390x", "1".repeat(64)),
        entry("unknown", "unknown", "2".repeat(64)),
        entry("linux", host, sha256(&manifest)),
    ]});
    let index = serde_json::to_vec(&index).expect("JSON");
    let digest = sha256(&index);
    let content = Content::default().image("team/app", "v1", &image).document("team/app", "multi", INDEX, index);
    let server = Server::start(move |asked| content.answer(asked));
    let name = format!("{}/team/app:multi", server.address());
    let said = ground.ok(&["pull", &name]);
    assert!(said.starts_with(&format!("Digest: sha256:{digest}\n")), "{said}");
    let by_digest = format!("{}/team/app@sha256:{digest}", server.address());
    ground.ok(&["pull", "-q", &by_digest]);
    assert_eq!(ground.file(&by_digest, "etc/top"), "one");
    ground.assert_empty_again();
}

#[test]
fn two_pulls_at_once_fetch_once() {
    let ground = Ground::new();
    let image = image("one");
    let content = Content::default().image("team/app", "v1", &image).image("team/app", "also", &image);
    let base = blob_path(&image, 0);
    let server = Server::start(move |asked| {
        if asked.path == base {
            // Until the others have begun.
            std::thread::sleep(std::time::Duration::from_millis(500));
        }
        content.answer(asked)
    });
    let names = ["v1", "also", "v1"].map(|tag| format!("{}/team/app:{tag}", server.address()));
    let mut pulls: Vec<_> = names
        .iter()
        .map(|name| {
            let mut command = ground.command(&["pull", "-q", name]);
            Process::spawn(command.stdout(Stdio::null()))
        })
        .collect();
    for pull in &mut pulls {
        assert!(pull.child().wait().expect("wait").success());
    }
    for layer in 0..3 {
        assert_eq!(server.count(&blob_path(&image, layer)), 1, "layer {layer}");
    }
    assert_eq!(ground.file(&names[1], "etc/top"), "one");
    ground.assert_empty_again();
}

#[test]
fn a_signal_ends_a_pull_and_leaves_nothing() {
    let ground = Ground::new();
    let image = image("one");
    for stalled in ["manifests", "first", "last"] {
        let content = Content::default().image("team/app", "v1", &image);
        let (first, last) = (blob_path(&image, 0), blob_path(&image, 2));
        let server = Server::start(move |asked| {
            let reply = content.answer(asked);
            let stalls = match stalled {
                "first" => asked.path == first,
                "last" => asked.path == last,
                _ => asked.is_manifest(),
            };
            if stalls { reply.stall(100) } else { reply }
        });
        let name = format!("{}/team/app:v1", server.address());
        let mut command = ground.command(&["pull", &name]);
        let mut pull = Process::spawn(command.stdout(Stdio::null()).stderr(Stdio::piped()));
        let awaited = if stalled == "manifests" { "/manifests/v1" } else { "/blobs/" };
        while server.count(awaited) < if stalled == "manifests" { 1 } else { 4 } {
            assert!(pull.child().try_wait().expect("wait").is_none(), "{stalled}: it ended by itself");
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        let pid = rustix::process::Pid::from_child(pull.child());
        rustix::process::kill_process(pid, rustix::process::Signal::INT).expect("kill");
        let mut said = String::new();
        let mut stderr = pull.child().stderr.take().expect("piped");
        std::io::Read::read_to_string(&mut stderr, &mut said).expect("read");
        assert_eq!(pull.child().wait().expect("wait").code(), Some(130), "{stalled}: {said}");
        let error = said.lines().filter(|line| line.starts_with("reflinkd: ")).collect::<Vec<_>>();
        assert_eq!(error, [format!("reflinkd: cannot pull {name}: interrupted")], "{stalled}");
        ground.assert_untouched(stalled);
    }
}

/// What was fetched is in files without names, and what was unpacked is found by the next verb.
#[test]
fn a_pull_that_is_killed_leaves_nothing_for_long() {
    let ground = Ground::new();
    let image = image("one");
    let content = Content::default().image("team/app", "v1", &image);
    let last = blob_path(&image, 2);
    let server = Server::start(move |asked| {
        let reply = content.answer(asked);
        if asked.path == last { reply.stall(100) } else { reply }
    });
    let mut command = ground.command(&["pull", &format!("{}/team/app:v1", server.address())]);
    let mut pull = Process::spawn(command.stdout(Stdio::null()).stderr(Stdio::null()));
    while server.count("/blobs/") < 4 {
        assert!(pull.child().try_wait().expect("wait").is_none(), "it ended by itself");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    pull.child().kill().expect("kill");
    pull.child().wait().expect("wait");
    ground.assert_untouched("after it was killed");
}

#[test]
fn a_full_disk_ends_a_pull_and_leaves_nothing() {
    let ground = Ground::of_size(256 * MIB);
    // Nothing that would become a hole, and small on the wire.
    let large = vec![0x5a; 40 << 20];
    let files: Vec<_> = (0..8).map(|n| format!("file{n}")).collect();
    let entries: Vec<(&str, &[u8])> = files.iter().map(|name| (name.as_str(), &large[..])).collect();
    let image = TestImage::new("large").files(Packing::Gzip, &[("a", b"a")]).files(Packing::Zstd, &entries);
    let server = good(&image);
    let name = format!("{}/team/app:v1", server.address());
    let pulled = ground.ask(&["pull", "-q", &name]);
    assert_eq!(pulled.status, Some(1), "{}", pulled.stderr);
    assert!(pulled.stderr.contains(&format!("cannot pull {name}: layer ")), "{}", pulled.stderr);
    assert!(pulled.stderr.contains("No space left on device"), "{}", pulled.stderr);
    ground.assert_untouched("on a full disk");
}

#[test]
fn create_pulls_as_it_is_told() {
    let ground = Ground::new();
    let (old, new) = (image("old"), image("new"));
    let moved = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let contents = [&old, &new].map(|image| Content::default().image("team/app", "v1", image));
    let is_new = std::sync::Arc::clone(&moved);
    let server = Server::start(move |asked| contents[usize::from(is_new.load(Ordering::SeqCst))].answer(asked));
    let name = format!("{}/team/app:v1", server.address());
    let create = |pull: &[&str], container: &str| {
        let args = [&["create", "--image", &name], pull, &[container]].concat();
        let mut command = ground.command(&args);
        answer(command.env_remove("REFLINKD_PULL"))
    };
    let never = create(&["--pull", "never"], "c0");
    assert_eq!((never.status, server.asked().len()), (Some(1), 0), "{}", never.stderr);
    assert!(never.stderr.contains("there is no image"), "{}", never.stderr);
    let missing = create(&[], "c1");
    assert_eq!(missing.status, Some(0), "{}", missing.stderr);
    moved.store(true, Ordering::SeqCst);
    let asked = server.asked().len();
    assert_eq!(create(&["--pull", "missing"], "c2").status, Some(0));
    assert_eq!(server.asked().len(), asked, "what is here isn't asked for");
    assert_eq!(create(&["--pull", "always"], "c3").status, Some(0));
    for (container, expected) in [("c1", "old"), ("c2", "old"), ("c3", "new")] {
        let tree = std::path::PathBuf::from(ground.ok(&["mount", container]));
        assert_eq!(std::fs::read_to_string(tree.join("etc/top")).expect("read"), expected, "{container}");
        ground.ok(&["rm", container]);
    }
    ground.assert_empty_again();
}

/// Ahead of the unpacking layers are in files, not in memory.
#[test]
fn memory_is_bounded() {
    let ground = Ground::new();
    let layers: Vec<_> = (0..6).map(|n| (format!("file{n}"), random_bytes(24 << 20))).collect();
    let packed = layers
        .iter()
        .fold(TestImage::new("random"), |image, (name, bytes)| image.files(Packing::Plain, &[(name, bytes)]));
    let server = good(&packed);
    let name = format!("{}/team/app:v1", server.address());
    let mut command = ground.command(&["pull", "-q", &name]);
    let mut pull = Process::spawn(command.stdout(Stdio::null()));
    let status = rustix::process::Pid::from_child(pull.child());
    let mut peak = 0;
    while pull.child().try_wait().expect("wait").is_none() {
        let text = std::fs::read_to_string(format!("/proc/{}/status", status.as_raw_nonzero())).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or("0");
        let kib: u64 = line.trim().trim_end_matches(" kB").trim().parse().unwrap_or(0);
        peak = peak.max(kib << 10);
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    assert!(pull.child().wait().expect("wait").success());
    assert!(peak > 0 && peak < 64 << 20, "{peak} bytes");
    ground.assert_empty_again();
}

/// A server that ends what it sends without saying how long it is.
#[test]
fn bodies_without_a_length_are_taken() {
    let ground = Ground::new();
    let image = image("one");
    let content = Content::default().image("team/app", "v1", &image);
    let server = Server::start(move |asked| match content.answer(asked) {
        // Neither does it say what it is.
        Reply::Full { status, body, .. } if asked.is_manifest() => Reply::Full { status, headers: vec![], body },
        reply => reply.chunked(),
    });
    let name = format!("{}/team/app:v1", server.address());
    ground.ok(&["pull", "-q", &name]);
    assert_eq!(ground.file(&name, "etc/top"), "one");
    ground.assert_empty_again();
}

/// Only the damaged layer is fetched, and what is made on it stays.
#[test]
fn a_damaged_layer_is_made_again_from_there() {
    let ground = Ground::new();
    let image = image("one");
    let server = good(&image);
    let name = format!("{}/team/app:v1", server.address());
    ground.ok(&["pull", "-q", &name]);
    ground.ok(&["create", "--image", &name, "web"]);
    let layer = ground.world.row_where(&["layers"], "diff_id", &image.diff_ids()[1]);
    let tree = layer["directory"].as_str().expect("a path");
    run("btrfs", &["subvolume", "delete", "-c", tree]);
    let check = |from: &str| ground.ask(&["check", "--deep", "--repair", "--from", from]);
    let lacking = check(&format!("docker://{}/team/other", server.address()));
    assert_eq!(lacking.status, Some(1), "{}", lacking.stdout);
    assert!(lacking.stderr.contains("/team/other: registry") && lacking.stderr.contains("404"), "{}", lacking.stderr);
    let named = check("docker://no name");
    assert!(named.status == Some(1) && named.stderr.contains("cannot read docker://no name"), "{}", named.stderr);
    let mended = check(&format!("docker://{name}"));
    assert_eq!(mended.status, Some(0), "{}{}", mended.stdout, mended.stderr);
    assert!(mended.stdout.contains("tree-missing") && mended.stdout.contains("done"), "{}", mended.stdout);
    let fetched: Vec<_> = (0..3).map(|layer| server.count(&blob_path(&image, layer))).collect();
    assert_eq!(fetched, [1, 2, 1]);
    assert_eq!(ground.file(&name, "etc/middle"), "middle of one");
    ground.ok(&["rm", "web"]);
    ground.assert_empty_again();
}
