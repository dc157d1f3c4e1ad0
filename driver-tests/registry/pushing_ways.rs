//! Logins of a push, what it tries again, and how it ends early.

use std::fs;
use std::io::Read;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::json;

use crate::ground::{Ground, image};
use crate::server::{Asked, Content, Early, Reply, Server};
use crate::support::image::{Packing, TestImage};
use crate::support::{MIB, Process, fill, random_bytes, run};
use crate::taking::Taking;

fn basic(login: &str) -> String {
    format!("Basic {}", BASE64_STANDARD.encode(login))
}

fn log_in(ground: &Ground, registry: &str, login: &str) {
    let path = ground.home().join(".docker/config.json");
    fs::create_dir_all(path.parent().expect("a directory")).expect("mkdir");
    let entry = json!({ "auths": { registry: { "auth": BASE64_STANDARD.encode(login) } } });
    fs::write(path, serde_json::to_vec(&entry).expect("JSON")).expect("write");
}

fn refused(challenge: &str) -> Reply {
    Reply::error(401, "UNAUTHORIZED", "authentication required").with("WWW-Authenticate", challenge)
}

fn is_blob(asked: &Asked) -> bool {
    asked.method == "PUT" && asked.is_blob()
}

/// A registry that believes the tokens of a server of its own, each for `uses` requests and for the scopes that it was asked
/// for; `grudging`: the server gives none for more than one repository.
fn tokens(taking: &Taking, uses: usize, grudging: bool) -> (Server, Server) {
    let given = std::sync::Arc::new(Mutex::new(Vec::<(String, usize)>::new()));
    let counter = std::sync::Arc::clone(&given);
    let token_server = Server::start(move |asked| {
        let scopes = asked.path.split(['?', '&']).filter_map(|pair| pair.strip_prefix("scope="));
        let scopes: Vec<_> =
            scopes.map(|scope| scope.replace("%3A", ":").replace("%2F", "/").replace("%2C", ",")).collect();
        if asked.header("authorization") != basic("me:pass:word") || (grudging && scopes.len() > 1) {
            return Reply::json(403, r#"{"details":"not for you"}"#);
        }
        let mut given = counter.lock().expect("lock");
        given.push((scopes.join(" "), 0));
        Reply::json(200, &format!(r#"{{"token":"t{}"}}"#, given.len()))
    });
    let realm = format!("Bearer realm=\"{}/token\",service=\"x\"", token_server.url());
    let inside = taking.clone();
    let registry = Server::start(move |asked| {
        let number =
            asked.header("authorization").strip_prefix("Bearer t").and_then(|number| number.parse::<usize>().ok());
        let mut given = given.lock().expect("lock");
        let Some((scopes, used)) = number.and_then(|number| given.get_mut(number - 1)) else {
            return refused(&realm);
        };
        let repository = asked.path["/v2/".len()..].split("/blobs/").next().unwrap_or_default();
        let repository = repository.split("/manifests/").next().unwrap_or_default();
        let actions = if matches!(asked.method.as_str(), "GET") { ":pull" } else { ":pull,push" };
        let mut needed = vec![format!("repository:{repository}{actions}")];
        if let Some((_, from)) = asked.path.split_once("&from=") {
            needed.push(format!("repository:{}:pull", from.replace("%2F", "/")));
        }
        let granted =
            |scope: &String| scopes.split(' ').any(|known| known == scope || known == format!("{scope},push"));
        if *used == uses || !needed.iter().all(granted) {
            return refused(&realm);
        }
        *used += 1;
        inside.answer(asked)
    });
    (registry, token_server)
}

fn scopes_of(token_server: &Server) -> Vec<String> {
    let decoded = |path: &str| path.replace("%3A", ":").replace("%2F", "/").replace("%2C", ",");
    token_server.asked().iter().map(|asked| decoded(&asked.path)).collect()
}

#[test]
fn tokens_are_for_what_is_done_and_renewed() {
    let ground = Ground::new();
    let image = image("one");
    let taking = Taking::with(Content::default().image("team/app", "v1", &image));
    let (registry, token_server) = tokens(&taking, 3, false);
    log_in(&ground, &registry.address(), "me:pass:word");
    let (name, own) = (format!("{}/team/app:v1", registry.address()), format!("{}/team/own:v1", registry.address()));
    ground.ok(&["pull", "-q", &name]);
    assert!(scopes_of(&token_server).iter().all(|path| path.ends_with("scope=repository:team/app:pull")));
    let pushed = ground.ask(&["push", &name, &own]);
    assert_eq!(pushed.status, Some(0), "{}", pushed.stderr);
    assert_eq!(pushed.stderr.matches("Mounted from team/app").count(), 3, "{}", pushed.stderr);
    let scopes = scopes_of(&token_server);
    let to = "service=x&scope=repository:team/own:pull,push";
    assert!(scopes.iter().filter(|path| path.ends_with(to)).count() > 1, "renewed: {scopes:?}");
    let mounting = format!("{to}&scope=repository:team/app:pull");
    assert!(scopes.iter().any(|path| path.ends_with(&mounting)), "{scopes:?}");
    let passwords =
        registry.asked().iter().filter(|asked| asked.header("authorization").starts_with("Basic")).count();
    assert_eq!(passwords, 0, "the password is for the token server alone");

    // A token server that gives none for two: what isn't mounted is sent.
    let (registry, _token_server) = tokens(&taking, 100, true);
    log_in(&ground, &registry.address(), "me:pass:word");
    let (name, own) =
        (format!("{}/team/app:v1", registry.address()), format!("{}/team/third:v1", registry.address()));
    ground.ok(&["pull", "-q", &name]);
    let pushed = ground.ask(&["push", &name, &own]);
    assert_eq!(pushed.status, Some(0), "{}", pushed.stderr);
    assert_eq!(pushed.stderr.matches(": Pushed").count(), 3, "{}", pushed.stderr);
    assert_eq!(taking.get("team/third/manifests/v1"), Some(image.manifest_bytes()));

    log_in(&ground, &registry.address(), "me:wrong");
    let answer = ground.ask(&["push", &name, &own]);
    assert!(
        answer.stderr.contains("refuses user \"me\" of ") && !answer.stderr.contains("wrong"),
        "{}",
        answer.stderr
    );
    assert!(answer.stderr.contains("403 Forbidden: \"not for you\""), "{}", answer.stderr);
    ground.assert_empty_again();
}

/// Where blobs go by a `Location` isn't shown the login, and neither is who redirects.
#[test]
fn logins_stay_with_the_registry() {
    let ground = Ground::new();
    let image = image("one");
    ground.world.load(&image);
    let taking = Taking::default();
    let elsewhere = taking.start();
    let (inside, url) = (taking.clone(), elsewhere.url());
    let registry = Server::start(move |asked| {
        if asked.header("authorization") != basic("me:pass:word") {
            return refused("Basic realm=\"here\"");
        }
        let reply = inside.answer(asked);
        match (&reply, asked.method.as_str()) {
            (Reply::Full { status: 202, headers, .. }, "POST") => {
                let location = headers.iter().find(|(name, _)| *name == "Location").map(|(_, to)| to.clone());
                reply.clone().with("Location", &format!("{url}{}", location.expect("a location")))
            }
            _ => reply,
        }
    });
    log_in(&ground, &registry.address(), "me:pass:word");
    let name = format!("{}/team/app:v1", registry.address());
    ground.ok(&["push", "-q", &image.id(), &name]);
    let shown = elsewhere.asked();
    assert_eq!(shown.len(), 4, "the configuration and three layers");
    assert!(shown.iter().all(|asked| asked.header("authorization").is_empty()), "{shown:?}");
    assert_eq!(registry.count_of("PUT", "/blobs/"), 0);

    // One that asks for it all the same.
    let thief = Server::start(|asked| {
        let realm = format!("Bearer realm=\"http://{}/token\"", asked.header("host"));
        if asked.path == "/token" { Reply::json(200, r#"{"token":"t"}"#) } else { refused(&realm) }
    });
    let url = thief.url();
    let registry = Server::start(move |asked| match asked.method.as_str() {
        _ if asked.header("authorization") != basic("me:pass:word") => refused("Basic realm=\"here\""),
        "POST" => Reply::new(202, "text/plain", "").with("Location", &format!("{url}/upload")),
        _ => Reply::new(404, "text/plain", ""),
    });
    log_in(&ground, &registry.address(), "me:pass:word");
    let answer = ground.ask(&["push", &image.id(), &format!("{}/team/app:v1", registry.address())]);
    assert_eq!(answer.status, Some(1));
    assert!(answer.stderr.contains("401 Unauthorized"), "{}", answer.stderr);
    let shown = thief.asked();
    assert!(!shown.is_empty() && shown.iter().all(|asked| asked.header("authorization").is_empty()), "{shown:?}");
    assert_eq!(thief.count("/token"), 0);
    ground.assert_empty_again();
}

#[test]
fn what_passes_is_tried_again() {
    let ground = Ground::new();
    let image = image("one");
    ground.world.load(&image);
    let taking = Taking::default();
    let (inside, heads, tries, tags) =
        (taking.clone(), AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
    let begun = std::time::Instant::now();
    let server = Server::start_looking(
        None,
        move |asked| match is_blob(asked) && asked.header("content-length").len() > 5 {
            // The large one breaks twice.
            true if heads.fetch_add(1, Ordering::SeqCst) < 2 => Early::Break(100_000),
            _ => Early::Read,
        },
        move |asked| {
            if asked.method == "PUT" && asked.is_manifest() && tags.fetch_add(1, Ordering::SeqCst) == 0 {
                return Reply::error(429, "TOOMANYREQUESTS", "slow down").with("Retry-After", "1");
            }
            if is_blob(asked) {
                match tries.fetch_add(1, Ordering::SeqCst) {
                    0 => return Reply::new(503, "text/html", "<html>soon</html>"),
                    1 => return Reply::error(404, "BLOB_UPLOAD_UNKNOWN", "another of us knows it"),
                    // It is taken, and who sent it doesn't hear of that.
                    2 => {
                        return {
                            drop(inside.answer(asked));
                            Reply::Raw(Vec::new())
                        };
                    }
                    _ => {}
                }
            }
            inside.answer(asked)
        },
    );
    let pushed = ground.ask(&["push", &image.id(), &format!("{}/team/app:v1", server.address())]);
    assert_eq!(pushed.status, Some(0), "{}", pushed.stderr);
    assert!(begun.elapsed() >= std::time::Duration::from_secs(1), "never sooner than it was asked to wait");
    assert_eq!(taking.tags().len(), 1);
    assert_eq!(taking.uploads(), 0, "what broke is cancelled");
    ground.assert_empty_again();
}

/// A registry that stops reading in the middle of a large blob.
fn stalling(taking: &Taking) -> Server {
    let inside = taking.clone();
    let early = |asked: &Asked| match is_blob(asked) && asked.header("content-length").len() > 5 {
        true => Early::Stall,
        false => Early::Read,
    };
    Server::start_looking(None, early, move |asked| inside.answer(asked))
}

#[test]
fn a_signal_ends_a_push_and_its_uploads() {
    let ground = Ground::new();
    let image = TestImage::new("large").files(Packing::Plain, &[("a", &random_bytes(8 << 20))]);
    ground.world.load(&image);
    let before = ground.world.stored();
    for signal in [rustix::process::Signal::INT, rustix::process::Signal::TERM, rustix::process::Signal::KILL] {
        let taking = Taking::default();
        let server = stalling(&taking);
        let name = format!("{}/team/app:v1", server.address());
        let mut command = ground.command(&["push", &image.id(), &name]);
        let mut push = Process::spawn(command.stdout(Stdio::null()).stderr(Stdio::piped()));
        while server.count_of("PUT", "/blobs/") == 0 {
            assert!(push.child().try_wait().expect("wait").is_none(), "it ended by itself");
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        let pid = rustix::process::Pid::from_child(push.child());
        rustix::process::kill_process(pid, signal).expect("kill");
        let mut said = String::new();
        push.child().stderr.take().expect("piped").read_to_string(&mut said).expect("read");
        let status = push.child().wait().expect("wait");
        assert!(taking.tags().is_empty());
        if signal != rustix::process::Signal::KILL {
            assert_eq!(status.code(), Some(130), "{said}");
            let error = format!("reflinkd: cannot push {} to {name}: interrupted", image.id());
            assert!(said.lines().any(|line| line == error), "{said}");
            assert_eq!(taking.uploads(), 0, "it is cancelled");
        }
        assert_eq!(ground.world.stored(), before);
    }
    ground.assert_empty_again();
}

#[test]
fn a_full_disk_ends_a_push_that_has_to_pack() {
    let ground = Ground::of_size(256 * MIB);
    let image = TestImage::new("large").files(Packing::Plain, &[("a", &random_bytes(40 << 20))]);
    ground.world.load(&image);
    let before = ground.world.stored();
    let taking = Taking::default();
    let server = taking.start();
    let filler = ground.world.root().join("../filler");
    fill(&filler, u64::MAX);
    let pushed = ground.ask(&["push", &image.id(), &format!("{}/team/app:v1", server.address())]);
    fs::remove_file(&filler).expect("remove");
    assert_eq!(pushed.status, Some(1), "{}", pushed.stderr);
    assert!(pushed.stderr.contains("No space left on device"), "{}", pushed.stderr);
    assert!(pushed.stderr.contains("hint: "), "{}", pushed.stderr);
    assert!(taking.tags().is_empty());
    assert_eq!(ground.world.stored(), before);
    ground.assert_empty_again();
}

#[test]
fn a_layer_that_is_not_what_it_was_is_not_pushed() {
    let ground = Ground::new();
    let image = image("one");
    ground.world.load(&image);
    let layer = ground.world.row_where(&["layers"], "diff_id", &image.diff_ids()[1]);
    let tree = PathBuf::from(layer["directory"].as_str().expect("a path"));
    run("btrfs", &["property", "set", "-f", tree.to_str().expect("UTF-8"), "ro", "false"]);
    fs::write(tree.join("etc/middle"), "MIDDLE of one").expect("write");
    let taking = Taking::default();
    let server = taking.start();
    let pushed = ground.ask(&["push", &image.id(), &format!("{}/team/app:v1", server.address())]);
    assert_eq!(pushed.status, Some(1), "{}", pushed.stderr);
    assert!(pushed.stderr.contains("its tree was changed after it was loaded"), "{}", pushed.stderr);
    assert!(taking.tags().is_empty());
    ground.assert_empty_again();
}

/// What is sent is in files or on its way, never in memory.
#[test]
fn memory_is_bounded() {
    let ground = Ground::new();
    let layers: Vec<_> = (0..6).map(|n| (format!("file{n}"), random_bytes(24 << 20))).collect();
    let image = layers
        .iter()
        .fold(TestImage::new("random"), |image, (name, bytes)| image.files(Packing::Plain, &[(name, bytes)]));
    ground.world.load(&image);
    for compress in ["gzip", "zstd"] {
        let taking = Taking::default();
        let server = taking.start();
        let name = format!("{}/team/app:v1", server.address());
        let mut command = ground.command(&["push", "-q", "--compress", compress, &image.id(), &name]);
        let mut push = Process::spawn(command.stdout(Stdio::null()));
        let status = rustix::process::Pid::from_child(push.child());
        let mut peak = 0;
        while push.child().try_wait().expect("wait").is_none() {
            let text = fs::read_to_string(format!("/proc/{}/status", status.as_raw_nonzero())).unwrap_or_default();
            let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or("0");
            let kib: u64 = line.trim().trim_end_matches(" kB").trim().parse().unwrap_or(0);
            peak = peak.max(kib << 10);
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        assert!(push.child().wait().expect("wait").success());
        assert!(peak > 0 && peak < 64 << 20, "{compress}: {peak} bytes");
        assert_eq!(taking.tags().len(), 1);
    }
    ground.assert_empty_again();
}
