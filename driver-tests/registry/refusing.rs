//! Registries that won't take what is pushed: one clear error each, in their own words where they have any, nothing tagged,
//! no upload left there, and nothing left here.

use std::sync::atomic::{AtomicUsize, Ordering};

use crate::ground::{Ground, image};
use crate::server::{Asked, Early, Reply, Server};
use crate::taking::Taking;

type Early0 = Box<dyn Fn(&Asked) -> Early + Send + Sync>;
type Changing = Box<dyn Fn(&Asked, &dyn Fn() -> Reply) -> Reply + Send + Sync>;

struct Case {
    name: &'static str,
    /// All that the error has to say.
    says: &'static [&'static str],
    early: Early0,
    answer: Changing,
    /// How often something has to be done.
    counts: Option<(&'static str, &'static str, usize)>,
}

impl Case {
    /// One that answers otherwise than the good registry would.
    fn new(
        name: &'static str,
        says: &'static [&'static str],
        answer: impl Fn(&Asked, &dyn Fn() -> Reply) -> Reply + Send + Sync + 'static,
    ) -> Self {
        Self { name, says, early: Box::new(|_| Early::Read), answer: Box::new(answer), counts: None }
    }

    /// One that doesn't read all that it is sent.
    fn early(
        name: &'static str,
        says: &'static [&'static str],
        early: impl Fn(&Asked) -> Early + Send + Sync + 'static,
    ) -> Self {
        Self { early: Box::new(early), ..Self::new(name, says, |_, good| good()) }
    }

    fn doing(mut self, method: &'static str, part: &'static str, times: usize) -> Self {
        self.counts = Some((method, part, times));
        self
    }
}

fn is_begin(asked: &Asked) -> bool {
    asked.method == "POST" && asked.path.contains("/blobs/uploads/")
}

fn is_blob(asked: &Asked) -> bool {
    asked.method == "PUT" && asked.is_blob()
}

fn is_tag(asked: &Asked) -> bool {
    asked.method == "PUT" && asked.is_manifest()
}

/// The answer to what `which` says.
fn to(which: fn(&Asked) -> bool, reply: Reply) -> impl Fn(&Asked, &dyn Fn() -> Reply) -> Reply {
    move |asked, good| if which(asked) { reply.clone() } else { good() }
}

fn page(status: u16) -> Reply {
    Reply::new(status, "text/html", "<html><head><title>Sign in, please</title></head></html>")
}

fn cases() -> Vec<Case> {
    let wrong = format!("sha256:{}", "f".repeat(64));
    let stall = || Reply::Stall { reply: Box::new(Reply::Raw(Vec::new())), after: 0 };
    let denied = Reply::error(403, "DENIED", "requested access to the resource is denied");
    let unknown = Reply::error(404, "NAME_UNKNOWN", "repository name not known to registry");
    vec![
        Case::new(
            "forbidden",
            &["layer ", "403 Forbidden: \"requested access to the resource is denied\""],
            to(is_begin, denied.clone()),
        ),
        Case::new("forbidden at all", &["403 Forbidden: \"requested access"], move |asked, _| {
            match asked.method.as_str() {
                // Without words: those are of what comes then.
                "HEAD" => Reply::new(403, "application/json", ""),
                _ => denied.clone(),
            }
        }),
        Case::new(
            "no repository",
            &["404 Not Found: \"repository name not known to registry\""],
            to(is_begin, unknown),
        ),
        Case::new(
            "no login",
            &["it asks for a login, and none is known", "hint: docker login 127.0.0.1:"],
            to(
                |_| true,
                Reply::error(401, "UNAUTHORIZED", "who are you").with("WWW-Authenticate", "Basic realm=\"x\""),
            ),
        ),
        Case::new(
            "too many",
            &["429 Too Many Requests: \"slow down\"", "hint: it asks to wait 3600 s"],
            to(is_blob, Reply::error(429, "TOOMANYREQUESTS", "slow down").with("Retry-After", "3600")),
        ),
        Case::new("too large", &["413 Payload Too Large: a page titled \"Sign in, please\""], to(is_blob, page(413))),
        // It hangs up on who sends, and says why to who asks first.
        Case::early("too large at once", &["413 Payload Too Large: \"no more than 1 MB\""], |asked| {
            match is_blob(asked)
                && asked.header("content-length").parse::<usize>().is_ok_and(|length| length > 100_000)
            {
                true if asked.header("expect").is_empty() => Early::Break(1000),
                true => Early::Refuse(Reply::error(413, "SIZE_INVALID", "no more than 1 MB")),
                false => Early::Read,
            }
        }),
        Case::new(
            "fails",
            &["500 Internal Server Error: \"it is full\""],
            to(is_begin, Reply::error(500, "UNKNOWN", "it is full")),
        ),
        Case::new(
            "fails in the end",
            &["503 Service Unavailable: \"it is full\""],
            to(is_tag, Reply::error(503, "UNKNOWN", "it is full")),
        )
        .doing("PUT", "/manifests/", 5),
        Case::early("breaks", &["the connection broke"], |asked| match is_blob(asked) {
            true => Early::Break(300),
            false => Early::Read,
        }),
        Case::new(
            "page",
            &["it answers 200 OK: a page titled \"Sign in, please\" where 202 Accepted was due"],
            to(is_begin, page(200)),
        ),
        Case::new(
            "page for a blob",
            &["it answers 200 OK: a page titled \"Sign in, please\" where 201 Created was due"],
            to(is_blob, page(200)),
        ),
        Case::new(
            "nowhere",
            &["it doesn't say where the blob is to go"],
            to(is_begin, Reply::new(202, "text/plain", "")),
        ),
        Case::new(
            "elsewhere",
            &["it would have the blob go nowhere: \"ftp://a/b\""],
            to(is_begin, Reply::new(202, "text/plain", "").with("Location", "ftp://a/b")),
        ),
        Case::new("redirected", &["it redirects what is sent"], to(is_blob, Reply::redirect("http://127.0.0.1:9/"))),
        Case::new(
            "redirected tag",
            &["manifests/v1: it redirects what is sent"],
            to(is_tag, Reply::redirect("/v2/other/manifests/v1")),
        ),
        Case::new("another blob", &["it says that it has \"sha256:ffff", " in place of sha256:"], {
            let wrong = wrong.clone();
            move |asked, good| match is_blob(asked) {
                true => good().with("Docker-Content-Digest", &wrong),
                false => good(),
            }
        }),
        Case::new("another manifest", &["manifests/v1: it says that it has \"sha256:ffff"], move |asked, good| {
            match is_tag(asked) {
                // Nor is it tagged there.
                true => Reply::new(201, "text/plain", "").with("Docker-Content-Digest", &wrong),
                false => good(),
            }
        }),
        Case::new(
            "invalid",
            &["manifests/v1: 400 Bad Request: \"manifest invalid: no\""],
            to(is_tag, {
                Reply::json(
                    400,
                    r#"{"errors":[{"code":"MANIFEST_INVALID","message":"manifest invalid","detail":"no"}]}"#,
                )
            }),
        ),
        Case::new("no answer", &["no answer within 1 s"], to(is_begin, stall())),
        Case::new("no answer to a blob", &["no answer within 1 s"], to(is_blob, stall())),
        Case::new(
            "endless",
            &["500 Internal Server Error"],
            to(is_begin, Reply::new(500, "text/plain", vec![b'x'; 1000]).endless()),
        ),
        Case::early("takes nothing", &["s"], |asked| match is_blob(asked) {
            true => Early::Stall,
            false => Early::Read,
        }),
    ]
}

fn look(ground: &Ground, config: &str, image: &str, case: Case) -> Result<(), String> {
    let taking = Taking::default();
    let (inside, Case { name, says, early, answer, counts }) = (taking.clone(), case);
    let server = Server::start_looking(None, early, move |asked| answer(asked, &|| inside.answer(asked)));
    let to = format!("{}/team/app:v1", server.address());
    let pushed = ground.ask(&["--config", config, "push", image, &to]);
    let fail = |why: &str| Err(format!("{name}: {why}: {}", pushed.stderr));
    if pushed.status != Some(1) {
        return fail("it is pushed");
    }
    let errors: Vec<_> = pushed.stderr.lines().filter(|line| line.starts_with("reflinkd: ")).collect();
    if errors.len() != 1 || !errors[0].starts_with(&format!("reflinkd: cannot push {image} to {to}: ")) {
        return fail("not one error with both names");
    }
    if let Some(missing) = says.iter().find(|words| !pushed.stderr.contains(**words)) {
        return fail(&format!("it doesn't say {missing:?}"));
    }
    if !taking.tags().is_empty() {
        return fail("it is tagged");
    }
    if taking.uploads() > 0 {
        return fail("an upload is left there");
    }
    match counts {
        Some((method, part, times)) if server.count_of(method, part) != times => fail("not so often"),
        _ => Ok(()),
    }
}

#[test]
fn each_is_one_error() {
    let ground = Ground::new();
    let config = ground.config("fast.toml", "registry_timeout = 1");
    let image = image("one");
    ground.world.load(&image);
    let before = ground.world.stored();
    let id = image.id();
    let (next, cases) = (AtomicUsize::new(0), cases());
    let cases: Vec<_> = cases.into_iter().map(|case| std::sync::Mutex::new(Some(case))).collect();
    let config = config.to_str().expect("UTF-8");
    let failed: Vec<String> = std::thread::scope(|scope| {
        let work = || {
            let mut failed = Vec::new();
            while let Some(case) = cases.get(next.fetch_add(1, Ordering::SeqCst)) {
                let case = case.lock().expect("lock").take().expect("each once");
                failed.extend(look(&ground, config, &id, case).err());
            }
            failed
        };
        let workers: Vec<_> = (0..4).map(|_| scope.spawn(work)).collect();
        workers.into_iter().flat_map(|worker| worker.join().expect("it ends")).collect()
    });
    assert!(failed.is_empty(), "{}", failed.join("\n"));
    assert_eq!(ground.world.stored(), before);
    ground.assert_empty_again();
}
