//! What goes over the socket: what dockerd sends, and what nobody should.

use std::thread;

use serde_json::json;

use crate::http::Connection;
use crate::serve::Serve;
use crate::support::image::tar_of;
use crate::support::{MIB, random_bytes};
use crate::world::World;

#[test]
fn the_calls_are_answered_as_docker_reads_them() {
    let world = World::simple();
    let serve = Serve::start(&world);
    // Everything in the order in which dockerd does it, on one connection; no Host at all for the last.
    let mut connection = serve.connect();
    let mut call = |path: &str, body: &str| {
        connection.post(path, body.as_bytes());
        let answer = connection.answer();
        assert_eq!(answer.status, 200, "{path}: {}", answer.text());
        assert_eq!(answer.header("content-type"), Some("application/vnd.docker.plugins.v1.1+json"));
        answer.text()
    };
    assert_eq!(call("/Plugin.Activate", ""), r#"{"Implements":["GraphDriver"]}"#);
    let init = r#"{"Home":"/x","Opts":null,"UIDMaps":null,"GIDMaps":null}"#;
    assert_eq!(call("/GraphDriver.Init", init), "{}");
    assert_eq!(call("/GraphDriver.Capabilities", "{}"), r#"{"Capabilities":{"ReproducesExactDiffs":true}}"#);
    assert_eq!(call("/GraphDriver.Exists", r#"{"ID":"l"}"#), r#"{"Exists":false}"#);
    let full = r#"{"ID":"l","Parent":"","MountLabel":"","StorageOpt":null}"#;
    assert_eq!(call("/GraphDriver.Create", full), "{}");
    assert_eq!(call("/GraphDriver.Exists", r#"{"ID":"l","Unknown":[1,{"a":null}]}"#), r#"{"Exists":true}"#);
    assert_eq!(call("/GraphDriver.Changes", r#"{"ID":"l"}"#), r#"{"Changes":[]}"#);
    assert_eq!(call("/GraphDriver.DiffSize", r#"{"ID":"l"}"#), r#"{"Size":0}"#);
    assert_eq!(call("/GraphDriver.Put", r#"{"ID":"l"}"#), "{}");
    assert_eq!(call("/GraphDriver.Remove", r#"{"ID":"l"}"#), "{}");
    assert_eq!(call("/GraphDriver.Cleanup", "{}"), "{}");
    let status = call("/GraphDriver.Status", "{}");
    for row in [r#"["Backend","btrfs"]"#, r#"["Quota Mode","simple"]"#, r#"["Trees","0"]"#] {
        assert!(status.contains(row), "{row} in {status}");
    }
    assert_eq!(call("/GraphDriver.Exists", "{}"), r#"{"Exists":false}"#);
    connection.send(b"POST /GraphDriver.Exists HTTP/1.1\r\n\r\n");
    let answer = connection.answer();
    assert_eq!(answer.status, 500, "what says nothing is refused");
    assert!(answer.text().contains("try again"), "{}", answer.text());
}

#[test]
fn hosts_and_types_dont_matter() {
    let world = World::simple();
    let serve = Serve::start(&world);
    for head in [
        "Host: ",
        "Host:",
        "Host: plugin.moby.localhost",
        "Host: %2Frun%2Fdocker%2Fplugins%2Freflinkd.sock",
        "Host: a\r\nAccept: application/vnd.docker.plugins.v1.2+json\r\nUser-Agent: Go-http-client/1.1",
        "Host: a\r\nContent-Type: text/plain",
    ] {
        let mut connection = serve.connect();
        let body = r#"{"ID":"x"}"#;
        let length = body.len();
        let request =
            format!("POST /GraphDriver.Exists HTTP/1.1\r\n{head}\r\nContent-Length: {length}\r\n\r\n{body}");
        connection.send(request.as_bytes());
        let answer = connection.answer();
        assert_eq!((answer.status, answer.text().as_str()), (200, r#"{"Exists":false}"#), "{head}");
    }
}

#[test]
fn unknown_calls_and_methods_are_refused_by_name() {
    let world = World::simple();
    let serve = Serve::start(&world);
    let mut connection = serve.connect();
    for path in ["/GraphDriver.Nothing", "/GraphDriver.create", "/VolumeDriver.Create", "/", "/GraphDriver."] {
        connection.post(path, b"{}");
        let answer = connection.answer();
        assert_eq!(answer.status, 404, "{path}");
        assert!(answer.err().contains(path), "{}", answer.text());
    }
    for method in ["GET", "PUT", "DELETE"] {
        connection.send(format!("{method} /GraphDriver.Status HTTP/1.1\r\nHost: \r\n\r\n").as_bytes());
        let status = connection.answer().status;
        assert!([404, 405].contains(&status), "{method}: {status}");
    }
    assert!(!serve.exists("x"));
}

#[test]
fn broken_requests_are_answered_and_change_nothing() {
    let world = World::simple();
    let serve = Serve::start(&world);
    let refused = |call: &str, body: &[u8]| {
        let mut connection = serve.connect();
        connection.post(&format!("/{call}"), body);
        let (answer, body) = (connection.answer(), String::from_utf8_lossy(body));
        assert_eq!(answer.status, 500, "{call} {body}: {}", answer.text());
        assert!(!answer.err().is_empty(), "{call} {body}");
    };
    for body in [
        &b"{"[..],
        b"[]",
        b"\"x\"",
        b"{\"ID\":7}",
        b"{\"ID\":\"a\"} {\"ID\":\"b\"}",
        b"{\"ID\":\"a\",\"ID\":\"b\"}",
        b"{\"ID\":\"a\",\"StorageOpt\":[]}",
        b"\xff\xfe",
        b"{\"ID\":\"a\xff\"}",
        b"{\"ID\":\"a\\u0000b\"}",
    ] {
        for call in ["GraphDriver.Create", "GraphDriver.Diff"] {
            refused(call, body);
        }
    }
    for body in
        [&b"{"[..], b"[]", b"null", b"{\"Home\":1}", b"{\"Opts\":\"size=1\"}", b"{\"UIDMaps\":[{\"size\":-1}]}"]
    {
        refused("GraphDriver.Init", body);
    }
    assert_eq!(world.places(), 0);
    let mut connection = serve.connect();
    connection.send(b"NONSENSE\r\n\r\n");
    assert_eq!(connection.answer().status, 400);
    let mut connection = serve.connect();
    connection.send(b"POST /GraphDriver.Exists HTTP/1.1\r\nHost: \r\nContent-Length: many\r\n\r\n");
    assert_eq!(connection.answer().status, 400);
    assert!(!serve.exists("a"), "it still answers");
}

#[test]
fn what_is_too_large_is_refused() {
    let world = World::simple();
    let serve = Serve::start(&world);
    let before = serve.proc_status("VmRSS");
    let large = format!(r#"{{"ID":"{}"}}"#, "x".repeat(10 << 20));
    let mut connection = serve.connect();
    connection.send(
        format!("POST /GraphDriver.Create HTTP/1.1\r\nHost: \r\nContent-Length: {}\r\n\r\n", large.len()).as_bytes(),
    );
    // It needn't take all of it.
    let _ = connection.try_send(large.as_bytes());
    let answer = connection.answer();
    assert!(answer.status == 500 && answer.err().contains("cannot read the request"), "{}", answer.text());
    // The same without a length that gives it away.
    let mut connection = serve.connect();
    connection.begin_chunked("/GraphDriver.Create");
    for chunk in large.as_bytes().chunks(1 << 20) {
        let _ = connection.try_chunk(chunk);
    }
    assert_eq!(connection.answer().status, 500);
    // Headers: hyper's limit is about 400 KB.
    let mut connection = serve.connect();
    let _ = connection.try_send(b"POST /GraphDriver.Exists HTTP/1.1\r\nHost: \r\nX: ");
    let _ = connection.try_send(&vec![b'x'; 2 << 20]);
    let _ = connection.try_send(b"\r\n\r\n");
    assert_eq!(connection.answer().status, 431);
    let mut connection = serve.connect();
    let path = format!("/GraphDriver.ApplyDiff?id={}", "x".repeat(60_000));
    connection.post(&path, b"");
    assert_eq!(connection.answer().status, 500);
    assert_eq!(world.places(), 0);
    // What is echoed is short, whatever was asked for, and moves nobody's cursor.
    let absurd = json!({ "ID": format!("\u{1b}[2J{}", "ü".repeat(1 << 19)) }).to_string();
    for call in ["Create", "Get", "Diff", "GetMetadata"] {
        let mut connection = serve.connect();
        connection.post(&format!("/GraphDriver.{call}"), absurd.as_bytes());
        let answer = connection.answer();
        let told = answer.err();
        assert!(told.len() <= 2003 && !told.contains(char::is_control), "{call}: {told}");
    }
    let longest = serve.log().lines().map(str::len).max();
    assert!(longest.is_some_and(|length| length < 3000), "{longest:?}");
    // Ranges of ids are held against each other; homes are kept.
    let range = |id: u32| json!({ "container_id": id, "host_id": id, "size": 1 });
    let ranges: Vec<_> = (0..20_000).map(range).collect();
    for init in [json!({ "UIDMaps": ranges }), json!({ "GIDMaps": ranges }), json!({ "Home": "x".repeat(5000) })] {
        let mut connection = serve.connect();
        connection.post("/GraphDriver.Init", init.to_string().as_bytes());
        assert_eq!(connection.answer().status, 500);
    }
    let grown = serve.proc_status("VmHWM").saturating_sub(before);
    assert!(grown < 16 << 10, "grew by {grown} KiB");
}

/// Several requests at once on one connection are answered in their order; and many connections, each with more than one.
#[test]
fn connections_are_kept_and_answered_side_by_side() {
    let world = World::simple();
    let serve = Serve::start(&world);
    serve.create("there", "");
    let mut connection = serve.connect();
    for id in ["there", "gone", "there"] {
        connection.post("/GraphDriver.Exists", json!({ "ID": id }).to_string().as_bytes());
    }
    let answers = [(); 3].map(|()| connection.answer().json()["Exists"].as_bool());
    assert_eq!(answers, [Some(true), Some(false), Some(true)]);

    let mut connections: Vec<_> = (0..100).map(|_| serve.connect()).collect();
    for round in 0..3 {
        for connection in &mut connections {
            connection.post("/GraphDriver.Exists", br#"{"ID":"there"}"#);
        }
        for connection in connections.iter_mut().rev() {
            assert_eq!(connection.answer().text(), r#"{"Exists":true}"#, "round {round}");
        }
    }
    // One that is busy keeps nobody waiting.
    let mut busy = serve.connect();
    busy.begin_chunked("/GraphDriver.ApplyDiff?id=there&parent=");
    assert!(serve.exists("there"));
}

#[test]
fn chunks_may_have_any_length() {
    let world = World::simple();
    let serve = Serve::start(&world);
    let content = random_bytes(MIB);
    let tar = tar_of(&[("large", &content), ("small", b"x")]);
    for (id, length) in [("bytes", 1), ("odd", 777), ("blocks", 512), ("whole", tar.len())] {
        serve.create(id, "");
        let mut connection = serve.connect();
        connection.begin_chunked(&format!("/GraphDriver.ApplyDiff?id={id}&parent="));
        let (head, rest) = tar.split_at(2000.min(tar.len()));
        head.chunks(length).for_each(|chunk| connection.chunk(chunk));
        rest.chunks(length.max(100)).for_each(|chunk| connection.chunk(chunk));
        connection.end_chunks();
        assert_eq!(connection.answer().json()["Size"], content.len() + 1, "{id}");
        assert_eq!(serve.diff(id, ""), tar, "{id}");
    }
    // And none: with a length instead.
    serve.create("plain", "");
    let mut connection = serve.connect();
    let path = "/GraphDriver.ApplyDiff?id=plain&parent=";
    thread::scope(|scope| {
        scope.spawn(|| connection.post(path, &tar)).join().expect("sent");
    });
    assert_eq!(connection.answer().status, 200);
    assert_eq!(serve.diff("plain", ""), tar);
}

#[test]
fn an_apply_diff_that_is_refused_is_answered_after_its_body() {
    let world = World::simple();
    let serve = Serve::start(&world);
    serve.layer("done", "", &tar_of(&[("f", b"")]));
    let large = random_bytes(8 * MIB);
    for query in ["id=unknown&parent=", "id=done&parent=", "id=a&id=b", "id=done&parent=other"] {
        let mut connection: Connection = serve.connect();
        connection.begin_chunked(&format!("/GraphDriver.ApplyDiff?{query}"));
        // All of it is taken, though nobody wants it: a client that can't send may take that for a broken connection.
        large.chunks(65_536).for_each(|chunk| connection.chunk(chunk));
        connection.end_chunks();
        let answer = connection.answer();
        assert_eq!(answer.status, 500, "{query}: {}", answer.text());
        connection.post("/GraphDriver.Exists", br#"{"ID":"done"}"#);
        assert_eq!(connection.answer().text(), r#"{"Exists":true}"#, "{query}: the connection is whole");
    }
}
