//! Registries that misbehave: one clear error each, in their own words where they have any, and nothing left behind.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};

use crate::ground::{Ground, image};
use crate::server::{Asked, Content, INDEX, Reply, Server};
use crate::support::image::{TestImage, sha256};

pub(crate) struct Case {
    name: &'static str,
    server: Server,
    /// What is pulled; `v1` unless it says otherwise.
    reference: String,
    /// All that the error has to say.
    says: Vec<String>,
    /// How often something has to be asked for.
    counts: Option<(&'static str, usize)>,
}

impl Case {
    pub(crate) fn new(
        name: &'static str,
        says: &[&str],
        answer: impl Fn(&Asked, Reply) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let content = Content::default().image("team/app", "v1", &image(name));
        let server = Server::start(move |asked| answer(asked, content.answer(asked)));
        let says = says.iter().map(ToString::to_string).collect();
        Self { name, server, reference: ":v1".into(), says, counts: None }
    }

    fn of(mut self, reference: String) -> Self {
        self.reference = reference;
        self
    }

    pub(crate) fn asking(mut self, part: &'static str, times: usize) -> Self {
        self.counts = Some((part, times));
        self
    }
}

/// The answer for manifests.
pub(crate) fn manifest(reply: Reply) -> impl Fn(&Asked, Reply) -> Reply {
    move |asked, good| if asked.is_manifest() { reply.clone() } else { good }
}

/// The answer for the layer of `image(name)` in the middle.
pub(crate) fn layer(name: &'static str, change: impl Fn(Reply) -> Reply) -> impl Fn(&Asked, Reply) -> Reply {
    let digest = sha256(&image(name).layers[1].blob);
    move |asked, good| if asked.path.ends_with(&digest) { change(good) } else { good }
}

fn replaced(reply: Reply, change: impl Fn(&mut Vec<u8>)) -> Reply {
    let Reply::Full { status, headers, mut body } = reply else { return reply };
    change(&mut body);
    Reply::Full { status, headers, body }
}

/// An image whose config says that it is for another machine.
fn foreign(image: &TestImage) -> Content {
    let mut config: Value = serde_json::from_slice(&image.config_bytes()).expect("JSON");
    config["architecture"] = json!("s390x");
    let config = serde_json::to_vec(&config).expect("JSON");
    let mut manifest: Value = serde_json::from_slice(&image.manifest_bytes()).expect("JSON");
    manifest["config"]["digest"] = json!(format!("sha256:{}", sha256(&config)));
    manifest["config"]["size"] = json!(config.len());
    let manifest = serde_json::to_vec(&manifest).expect("JSON");
    let content = Content::default().image("team/app", "right", image);
    content.document("team/app", "v1", crate::server::MANIFEST, manifest).blob("team/app", config)
}

fn cases() -> Vec<Case> {
    let html =
        Reply::new(200, "text/html; charset=utf-8", "<html><head><title>Sign in, please</title></head></html>");
    let list = json!({ "schemaVersion": 2, "manifests": [{ "mediaType": crate::server::MANIFEST, "size": 2,
        "digest": format!("sha256:{}", "0".repeat(64)), "platform": { "os": "linux", "architecture": "s390x" } }] });
    let list = serde_json::to_vec(&list).expect("JSON");
    let foreign = foreign(&image("foreign"));
    let wrong = "f".repeat(64);
    let mut vast: Value = serde_json::from_slice(&image("vast").manifest_bytes()).expect("JSON");
    vast["layers"][2]["size"] = json!(u64::MAX);
    let vast = serde_json::to_vec(&vast).expect("JSON");
    vec![
        Case::new("unknown", &["404 Not Found: \"manifest unknown\""], |asked, good| {
            if asked.is_manifest() { Reply::error(404, "MANIFEST_UNKNOWN", "manifest unknown") } else { good }
        }),
        Case::new(
            "forbidden",
            &["403 Forbidden: \"requested access to the resource is denied\""],
            manifest(Reply::error(403, "DENIED", "requested access to the resource is denied")),
        ),
        Case::new(
            "no login",
            &["it asks for a login, and none is known", "hint: docker login 127.0.0.1:"],
            manifest(Reply::error(401, "UNAUTHORIZED", "who are you").with("WWW-Authenticate", "Basic realm=\"x\"")),
        ),
        Case::new(
            "unknown login",
            &["it asks for a login of an unknown kind (\"negotiate\")"],
            manifest(Reply::error(401, "UNAUTHORIZED", "who are you").with("WWW-Authenticate", "Negotiate")),
        ),
        Case::new(
            "no challenge",
            &["401 Unauthorized: \"just no\""],
            manifest(Reply::error(401, "UNAUTHORIZED", "just no")),
        ),
        Case::new(
            "too many",
            &["429 Too Many Requests: \"slow down\"", "hint: it asks to wait 3600 s"],
            manifest(Reply::error(429, "TOOMANYREQUESTS", "slow down").with("Retry-After", "3600")),
        )
        .asking("/manifests/v1", 1),
        Case::new(
            "unavailable",
            &["503 Service Unavailable: \"upstream \\u{1b}[31mdown\""],
            manifest(Reply::new(503, "text/plain", "upstream \u{1b}[31mdown\nmore")),
        )
        .asking("/manifests/v1", 5),
        Case::new("a page", &["it answers a page titled \"Sign in, please\" in place of a manifest"], manifest(html)),
        Case::new("no manifest", &["it is neither a manifest nor an index"], manifest(Reply::json(200, "{\"a\":1}"))),
        Case::new("no JSON", &["it isn't a JSON object"], manifest(Reply::json(200, "hello"))),
        Case::new(
            "no HTTP",
            &["it doesn't speak HTTP"],
            manifest(Reply::Raw(b"SSH-2.0-OpenSSH_9.2\r\n\r\n".to_vec())),
        ),
        Case::new(
            "an endless manifest",
            &["it has more bytes than the limit of 4194304", "max_manifest_size"],
            manifest(Reply::json(200, &" ".repeat(65536)).endless()),
        ),
        Case::new("another manifest", &[&format!("sha256:{wrong} was asked for")], |asked, good| {
            let mut asked = asked.clone();
            if asked.is_manifest() {
                asked.path = "/v2/team/app/manifests/v1".into();
                return Content::default().image("team/app", "v1", &image("another manifest")).answer(&asked);
            }
            good
        })
        .of(format!("@sha256:{wrong}")),
        Case::new(
            "a wrong digest",
            &["its blob has the digest sha256:", "its descriptor says sha256:"],
            layer("a wrong digest", |good| replaced(good, |body| body[20] ^= 1)),
        ),
        Case::new(
            "too short",
            &["bytes there from byte 0, its descriptor says"],
            layer("too short", |good| replaced(good, |body| body.truncate(30))),
        ),
        Case::new(
            "shorter than it says",
            &["broke off 5 times, last after 30 of", "the body ended"],
            layer("shorter than it says", |good| {
                // Nor does it give the rest of it.
                let short = replaced(good, |body| body.truncate(30));
                let Reply::Full { headers, .. } = &short else { return short };
                let range = headers.iter().find(|(name, _)| *name == "Content-Range").map(|(_, range)| range.clone());
                match range {
                    None => short.chunked(),
                    Some(range) => Reply::new(206, "x", "").with("Content-Range", &range).chunked(),
                }
            }),
        ),
        Case::new(
            "endless",
            &["goes on behind the", "bytes that its descriptor says"],
            layer("endless", Reply::endless),
        ),
        Case::new(
            "another range",
            &["was asked for from byte 30 on, and something else came"],
            layer("another range", |good| {
                let Reply::Full { headers, .. } = &good else { return good };
                if headers.iter().any(|(name, _)| *name == "Content-Range") {
                    good.with("Content-Range", "bytes 0-1/2")
                } else {
                    good.cut(30)
                }
            }),
        ),
        Case::new(
            "always broken",
            &["broke off 5 times, last after 0 of"],
            layer("always broken", |good| good.cut(0)),
        ),
        Case::new(
            "a lost layer",
            &["404 Not Found: \"blob unknown\""],
            layer("a lost layer", |_| Reply::error(404, "BLOB_UNKNOWN", "blob unknown")),
        ),
        Case::new(
            "a loop",
            &["it redirects more than 10 times"],
            manifest(Reply::redirect("/v2/team/app/manifests/v1")),
        )
        .asking("/manifests/v1", 11),
        Case::new(
            "to nowhere",
            &["it redirects nowhere: \"ftp://example.com/\""],
            manifest(Reply::redirect("ftp://example.com/")),
        ),
        Case::new(
            "to a login",
            &["it redirects nowhere", "it has a login in it"],
            manifest(Reply::redirect("http://me:secret@127.0.0.1/")),
        ),
        Case::new(
            "other platforms",
            &["it has no image for linux/", "it has linux/s390x"],
            manifest(Reply::new(200, INDEX, list)),
        ),
        Case::new("a foreign image", &["it has no image for linux/", "it has linux/s390x"], move |asked, _| {
            foreign.answer(asked)
        }),
        Case::new(
            "vast",
            &["its layers have more bytes than the limit of 68719476736", "max_archive_size"],
            manifest(Reply::new(200, crate::server::MANIFEST, vast)),
        )
        .asking("/blobs/", 1),
        Case::new("no token", &["its token server", "answers", "in place of a token"], |asked, good| {
            let realm = format!("Bearer realm=\"http://{}/token\",service=\"s\"", asked.header("host"));
            match asked.path.split('?').next() {
                Some("/token") => Reply::json(200, "{\"nothing\":1}"),
                _ if asked.is_manifest() => Reply::error(401, "UNAUTHORIZED", "x").with("WWW-Authenticate", &realm),
                _ => good,
            }
        }),
        Case::new(
            "a token refused",
            &[
                "its token server",
                "refuses us without a login: 401 Unauthorized: \"unknown user\"",
                "hint: docker login",
            ],
            |asked, good| {
                let realm = format!("Bearer realm=\"http://{}/token\",service=\"s\"", asked.header("host"));
                match asked.path.split('?').next() {
                    Some("/token") => Reply::json(401, "{\"details\":\"unknown user\"}"),
                    _ if asked.is_manifest() => {
                        Reply::error(401, "UNAUTHORIZED", "x").with("WWW-Authenticate", &realm)
                    }
                    _ => good,
                }
            },
        ),
    ]
}

#[test]
fn each_is_refused_with_one_error_and_leaves_nothing() {
    refuse(&cases(), &Ground::new());
}

/// All at the same time, as some wait before they try again.
#[track_caller]
pub(crate) fn refuse(cases: &[Case], ground: &Ground) {
    let next = AtomicUsize::new(0);
    let failures = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                while let Some(case) = cases.get(next.fetch_add(1, Ordering::SeqCst)) {
                    if let Err(why) = look(ground, case, &[]) {
                        failures.lock().expect("lock").push(why);
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().expect("lock");
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    ground.assert_untouched("after all of them");
}

pub(crate) fn look(ground: &Ground, case: &Case, flags: &[&str]) -> Result<(), String> {
    let name = format!("{}/team/app{}", case.server.address(), case.reference);
    let answer = ground.ask(&[flags, &["pull", "-q", &name]].concat());
    let said = &answer.stderr;
    let problem = |why: &str| Err(format!("{}: {why}: {said}", case.name));
    if answer.status != Some(1) || !answer.stdout.is_empty() {
        return problem("it doesn't fail");
    }
    let errors: Vec<_> = said.lines().filter(|line| !line.starts_with("hint: ")).collect();
    if errors.len() != 1 || !errors[0].starts_with(&format!("reflinkd: cannot pull {name}: ")) {
        return problem("it isn't one error of this image");
    }
    if said.contains(|c: char| c.is_control() && c != '\n') || said.len() > 1500 {
        return problem("control characters, or a flood");
    }
    if let Some(missing) = case.says.iter().find(|words| !said.contains(*words)) {
        return problem(&format!("it doesn't say {missing:?}"));
    }
    match case.counts {
        Some((part, times)) if case.server.count(part) != times => {
            problem(&format!("{part} was asked for {} times, not {times}", case.server.count(part)))
        }
        _ => Ok(()),
    }
}

#[test]
fn one_that_stalls_is_given_up() {
    let ground = Ground::new();
    let config = ground.config("fast.toml", "registry_timeout = 1");
    let flags = ["--config", config.to_str().expect("UTF-8")];
    let cases = [
        Case::new(
            "no answer",
            &["no answer within 1 s"],
            manifest(Reply::Stall { reply: Box::new(Reply::Raw(Vec::new())), after: 0 }),
        ),
        Case::new(
            "half a layer",
            &["broke off 5 times, last after 30 of", "nothing came for 1 s"],
            layer("half a layer", |good| {
                let resumed = matches!(&good, Reply::Full { status: 206, .. });
                good.stall(if resumed { 0 } else { 30 })
            }),
        ),
    ];
    std::thread::scope(|scope| {
        let looks: Vec<_> = cases.iter().map(|case| scope.spawn(|| look(&ground, case, &flags))).collect();
        for look in looks {
            look.join().expect("it ends").unwrap_or_else(|why| panic!("{why}"));
        }
    });
    ground.assert_untouched("after both");
}

#[test]
fn nobody_listens() {
    let ground = Ground::new();
    let server = Server::start(|_| Reply::json(200, ""));
    let address = server.address();
    drop(server);
    let answer = ground.ask(&["pull", &format!("{address}/a")]);
    assert_eq!(answer.status, Some(1));
    let expected =
        format!("cannot pull {address}/a:latest: registry {address}: it can't be reached: connection refused");
    assert!(answer.stderr.contains(&expected), "{}", answer.stderr);
    ground.assert_untouched("refused");
}

#[test]
fn what_passes_is_waited_for() {
    let ground = Ground::new();
    let image = image("one");
    let content = Content::default().image("team/app", "v1", &image);
    let (manifests, blobs) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let server = Server::start(move |asked| {
        let count = if asked.is_manifest() { &manifests } else { &blobs };
        match count.fetch_add(1, Ordering::SeqCst) {
            0 => Reply::error(429, "TOOMANYREQUESTS", "slow down").with("Retry-After", "1"),
            1 => Reply::new(503, "text/html", "<html>soon</html>"),
            _ => content.answer(asked),
        }
    });
    let begun = std::time::Instant::now();
    ground.ok(&["pull", "-q", &format!("{}/team/app:v1", server.address())]);
    // Never sooner than it was asked to wait.
    assert!(begun.elapsed() >= std::time::Duration::from_secs(1));
    ground.assert_empty_again();
}
