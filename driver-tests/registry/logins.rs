//! Logins: where they are found, and to whom they are shown.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicUsize, Ordering};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::json;

use crate::ground::{Ground, answer, image};
use crate::server::{Asked, Content, Reply, Server};

fn basic(login: &str) -> String {
    format!("Basic {}", BASE64_STANDARD.encode(login))
}

/// Keep a login for a registry as Docker does, or as podman (`.config/containers/auth.json`).
fn log_in(ground: &Ground, file: &str, registry: &str, login: &str) {
    let path = ground.home().join(file);
    fs::create_dir_all(path.parent().expect("a directory")).expect("mkdir");
    let entry = json!({ "auths": { registry: { "auth": BASE64_STANDARD.encode(login) } } });
    fs::write(path, serde_json::to_vec(&entry).expect("JSON")).expect("write");
}

fn refused(challenge: &str) -> Reply {
    Reply::error(401, "UNAUTHORIZED", "authentication required").with("WWW-Authenticate", challenge)
}

/// Asks for `me:pass:word`.
fn guarded(content: Content) -> Server {
    Server::start(move |asked| match asked.header("authorization") {
        known if known == basic("me:pass:word") => content.answer(asked),
        _ => refused("Basic realm=\"here\""),
    })
}

#[test]
fn a_password_is_found_and_shown() {
    let ground = Ground::new();
    let image = image("one");
    for file in [".docker/config.json", ".config/containers/auth.json", "run/containers/auth.json"] {
        let server = guarded(Content::default().image("team/app", "v1", &image));
        let name = format!("{}/team/app:v1", server.address());
        log_in(&ground, file, &server.address(), "me:pass:word");
        ground.ok(&["pull", "-q", &name]);
        let without = server.asked().iter().filter(|asked| asked.header("authorization").is_empty()).count();
        assert_eq!(without, 1, "{file}: it is shown when it was asked for, and from then on");
        fs::remove_file(ground.home().join(file)).expect("remove");
        ground.assert_empty_again();
    }
    let server = guarded(Content::default().image("team/app", "v1", &image));
    log_in(&ground, ".docker/config.json", &server.address(), "me:wrong");
    let answer = ground.ask(&["pull", &format!("{}/team/app:v1", server.address())]);
    assert_eq!(answer.status, Some(1));
    let said = "401 Unauthorized: \"authentication required\"";
    assert!(answer.stderr.contains(said) && !answer.stderr.contains("wrong"), "{}", answer.stderr);
    assert!(answer.stderr.contains("hint: it was shown user \"me\" of "), "{}", answer.stderr);
    assert_eq!(server.asked().len(), 2, "a password that is refused isn't tried again");
    ground.assert_untouched("after a wrong password");
}

#[test]
fn a_helper_is_asked() {
    let ground = Ground::new();
    let server = guarded(Content::default().image("team/app", "v1", &image("one")));
    let name = format!("{}/team/app:v1", server.address());
    let programs = ground.home().join("bin");
    fs::create_dir_all(&programs).expect("mkdir");
    fs::create_dir_all(ground.home().join(".docker")).expect("mkdir");
    let helper = programs.join("docker-credential-test");
    let path = format!("{}:{}", programs.display(), std::env::var("PATH").expect("a PATH"));
    let pull = || answer(ground.command(&["pull", "-q", &name]).env("PATH", &path));
    let write = |script: &str| {
        // Renamed, as it may still be written to by the child of another test.
        let aside = programs.join("aside");
        fs::write(&aside, format!("#!/bin/sh\n{script}")).expect("write");
        fs::set_permissions(&aside, PermissionsExt::from_mode(0o755)).expect("chmod");
        crate::support::run(
            "cp",
            &["--remove-destination", aside.to_str().expect("UTF-8"), helper.to_str().expect("UTF-8")],
        );
    };
    for config in [json!({ "credsStore": "test" }), json!({ "credHelpers": { server.address(): "test" } })] {
        fs::write(ground.home().join(".docker/config.json"), config.to_string()).expect("write");
        write("echo 'credentials not found in native keychain'; exit 1");
        let said = pull().stderr;
        assert!(said.contains("it asks for a login, and none is known"), "{said}");
        write("echo 'the keychain is locked' ; exit 1");
        let said = pull().stderr;
        assert!(said.contains("docker-credential-test\": exit status: 1: \"the keychain is locked\""), "{said}");
        write(&format!(
            "read -r key; [ \"$1 $key\" = 'get {}' ] && echo '{{\"Username\":\"me\",\"Secret\":\"pass:word\"}}'",
            server.address()
        ));
        let pulled = pull();
        assert_eq!(pulled.status, Some(0), "{}", pulled.stderr);
    }
    ground.assert_empty_again();
}

/// A registry and its token server; a token is good for `uses` requests.
fn tokens(content: Content, uses: usize) -> (Server, Server) {
    let given = std::sync::Arc::new(AtomicUsize::new(0));
    let counter = std::sync::Arc::clone(&given);
    let token_server = Server::start(move |asked| {
        let wanted = "/token?service=the%20registry&scope=repository%3Ateam%2Fapp%3Apull";
        match (asked.path.as_str(), asked.header("authorization")) {
            (path, known) if path == wanted && known == basic("me:pass:word") => {
                Reply::json(200, &format!(r#"{{"token":"t{}"}}"#, counter.fetch_add(1, Ordering::SeqCst) + 1))
            }
            // An identity token is exchanged by a form.
            ("/token", "")
                if asked.body.contains("refresh_token=id%2Fentity&")
                    || asked.body.ends_with("refresh_token=id%2Fentity") =>
            {
                Reply::json(200, &format!(r#"{{"access_token":"t{}"}}"#, counter.fetch_add(1, Ordering::SeqCst) + 1))
            }
            _ => Reply::json(401, r#"{"details":"incorrect username or password"}"#),
        }
    });
    let realm =
        format!("Bearer realm=\"{}/token\",service=\"the registry\",scope=\"repository:*:*\"", token_server.url());
    let used = AtomicUsize::new(0);
    let registry = Server::start(move |asked| {
        let now = given.load(Ordering::SeqCst);
        let good = now > 0 && asked.header("authorization") == format!("Bearer t{now}");
        let count = |used| (good && used < uses * now).then_some(used + 1);
        match used.fetch_update(Ordering::SeqCst, Ordering::SeqCst, count) {
            Ok(_) => content.answer(asked),
            Err(_) => refused(&realm),
        }
    });
    (registry, token_server)
}

#[test]
fn a_token_is_fetched_and_renewed() {
    let ground = Ground::new();
    let image = image("one");
    let content = || Content::default().image("team/app", "v1", &image);
    // Five requests a pull: the second token is for the last ones.
    let (registry, token_server) = tokens(content(), 3);
    log_in(&ground, ".docker/config.json", &registry.address(), "me:pass:word");
    let name = format!("{}/team/app:v1", registry.address());
    ground.ok(&["pull", "-q", &name]);
    assert!(token_server.asked().len() >= 2, "{:?}", token_server.asked());
    let passwords =
        registry.asked().iter().filter(|asked| asked.header("authorization").starts_with("Basic")).count();
    assert_eq!(passwords, 0, "the password is for the token server alone");
    ground.assert_empty_again();

    let (registry, _token_server) = tokens(content(), 100);
    let entry = json!({ "auths": { registry.address(): { "identitytoken": "id/entity" } } });
    fs::write(ground.home().join(".docker/config.json"), entry.to_string()).expect("write");
    ground.ok(&["pull", "-q", &format!("{}/team/app:v1", registry.address())]);
    ground.assert_empty_again();

    let (registry, _token_server) = tokens(content(), 100);
    log_in(&ground, ".docker/config.json", &registry.address(), "me:wrong");
    let answer = ground.ask(&["pull", &format!("{}/team/app:v1", registry.address())]);
    let said = "/.docker/config.json: 401 Unauthorized: \"incorrect username or password\"";
    assert!(answer.stderr.contains("refuses user \"me\" of "), "{}", answer.stderr);
    assert!(answer.stderr.contains(said) && !answer.stderr.contains("wrong"), "{}", answer.stderr);
    ground.assert_untouched("after a wrong password");
}

/// Blobs are mostly elsewhere; who has them is not to see the login, nor to ask for it.
#[test]
fn logins_stay_with_their_registry() {
    let ground = Ground::new();
    let content = Content::default().image("team/app", "v1", &image("one"));
    let all = content.clone();
    let elsewhere = Server::start(move |asked| all.answer(asked));
    let (url, guard) = (elsewhere.url(), content.clone());
    let registry = Server::start(move |asked| match asked.header("authorization") {
        known if known == basic("me:pass:word") && asked.is_blob() => {
            Reply::redirect(&format!("{url}{}", asked.path))
        }
        known if known == basic("me:pass:word") => guard.answer(asked),
        _ => refused("Basic realm=\"here\""),
    });
    log_in(&ground, ".docker/config.json", &registry.address(), "me:pass:word");
    ground.ok(&["pull", "-q", &format!("{}/team/app:v1", registry.address())]);
    let shown: Vec<Asked> = elsewhere.asked();
    assert_eq!(shown.len(), 4, "the config and three layers");
    assert!(shown.iter().all(|asked| asked.header("authorization").is_empty()), "{shown:?}");
    ground.assert_empty_again();

    // One that asks for it all the same.
    let thief = Server::start(|asked| match asked.path.as_str() {
        "/token" => Reply::json(200, r#"{"token":"t"}"#),
        _ => {
            let realm = format!("Bearer realm=\"http://{}/token\"", asked.header("host"));
            refused(&realm)
        }
    });
    let (url, guard) = (thief.url(), content);
    let registry = Server::start(move |asked| match asked.header("authorization") {
        known if known == basic("me:pass:word") && asked.is_blob() => {
            Reply::redirect(&format!("{url}{}", asked.path))
        }
        known if known == basic("me:pass:word") => guard.answer(asked),
        _ => refused("Basic realm=\"here\""),
    });
    log_in(&ground, ".docker/config.json", &registry.address(), "me:pass:word");
    let answer = ground.ask(&["pull", &format!("{}/team/app:v1", registry.address())]);
    assert!(answer.stderr.contains("401 Unauthorized"), "{}", answer.stderr);
    let shown = thief.asked();
    assert!(!shown.is_empty() && shown.iter().all(|asked| asked.header("authorization").is_empty()), "{shown:?}");
    assert_eq!(thief.count("/token"), 0);
    ground.assert_untouched("after a thief");
}
