//! What is said at the doors: raw bytes at both, bodies of Docker's calls, and messages of containerd's.
//!
//! Whoever may ask there is root; but what he hands on, names and labels of images above all, is others'. So each request is
//! answered or its connection closed, in short words, and the store is whole afterwards ([`Hall::settle`]).

use prost::Message;
use prost::bytes::{Buf, BufMut};
use serde_json::{Value, json};
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::{Code, Request, Status};

use super::api::services::diff::v1::{ApplyRequest, DiffRequest};
use super::api::services::snapshots::v1::{
    CommitSnapshotRequest, Info, ListSnapshotsRequest, MountsResponse, PrepareSnapshotRequest, RemoveSnapshotRequest,
    UpdateSnapshotRequest,
};
use super::api::types::{Descriptor, Mount};
use super::hall::{self, Door, Hall};
use super::store::State;
use super::writer::{Raw, Tar};

/// Calls of one input at most.
const MOST_CALLS: usize = 16;
/// Bytes of an error at most, as it is told to a client.
const MOST_TOLD: usize = 2003;
/// Bytes of an answer at most, for each of the fewest that ask for one.
const MOST_ANSWERED: usize = 16 << 10;

/// At Docker's door.
pub(crate) fn http(data: &[u8]) {
    hall::with(|hall| {
        let answer = hall.say(Door::Docker, data);
        let is_http2 = data.starts_with(PREFACE);
        assert!(is_http2 || answer.is_empty() || answer.starts_with(b"HTTP/1."), "{}", answer.escape_ascii());
        let most = (1 + data.len() / b"A / HTTP/1.1\r\n\r\n".len()) * MOST_ANSWERED;
        assert!(answer.len() <= most, "{} bytes are answered", answer.len());
        hall.settle();
    });
}

/// At containerd's door. The first byte chooses: odd, the connection has begun as it should, and frames follow.
pub(crate) fn http2(data: &[u8]) {
    let Some((&choice, frames)) = data.split_first() else { return };
    let words = if choice & 1 == 1 { [PREFACE, NO_SETTINGS, frames].concat() } else { frames.to_vec() };
    hall::with(|hall| {
        let answer = hall.say(Door::Containerd, &words);
        let settings = answer.get(3).is_some_and(|kind| *kind == NO_SETTINGS[3]);
        assert!(settings || answer.is_empty() || answer.starts_with(b"HTTP/1."), "{}", answer.escape_ascii());
        let most = (1 + words.len() / NO_SETTINGS.len()) * MOST_ANSWERED;
        assert!(answer.len() <= most, "{} bytes are answered", answer.len());
        hall.settle();
    });
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// A frame of its kind (RFC 9113, 6.5).
const NO_SETTINGS: &[u8] = &[0, 0, 0, 4, 0, 0, 0, 0, 0];

/// Docker's calls, a line each: its name, and its body. That of `ApplyDiff` is the query, and a good tar comes with it.
pub(crate) fn plugin(data: &[u8]) {
    hall::with(|hall| {
        for line in data.split(|byte| *byte == b'\n').take(MOST_CALLS) {
            let (name, body) = line.split_at(line.iter().position(|byte| *byte == b' ').unwrap_or(line.len()));
            if !name.is_empty() && name.iter().all(u8::is_ascii_alphabetic) {
                called(hall, &String::from_utf8_lossy(name), body.trim_ascii());
            }
        }
        hall.settle();
    });
}

fn called(hall: &Hall, name: &str, body: &[u8]) {
    let (query, body) = match name {
        "ApplyDiff" => (format!("?{}", body.escape_ascii()).replace(char::is_whitespace, "+"), layer()),
        _ => (String::new(), body.to_vec()),
    };
    let length = body.len();
    let head = format!(
        "POST /GraphDriver.{name}{query} HTTP/1.1\r\nHost: \r\nConnection: close\r\nContent-Length: {length}\r\n\r\n"
    );
    let answer = hall.ask(Door::Docker, &[head.as_bytes(), &body].concat());
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n");
    let (head, body) = answer.split_at(end.unwrap_or_else(|| panic!("{name}: {}", answer.escape_ascii())));
    let head = String::from_utf8_lossy(head).to_ascii_lowercase();
    let status = head.strip_prefix("http/1.1 ").and_then(|rest| rest.get(..3));
    // The query is hyper's to read, which says so in its own way.
    let by_hyper = !query.is_empty() && matches!(status, Some("400" | "414"));
    if by_hyper || head.contains("application/x-tar") {
        return;
    }
    assert!(matches!(status, Some("200" | "404" | "500")), "{name}: {head}");
    let answer: Value = serde_json::from_slice(&body[4..]).expect("JSON");
    let told = answer["Err"].as_str().unwrap_or_default();
    assert_eq!(told.is_empty(), status == Some("200"), "{name}: {answer}");
    assert_told(told);
    if let Some(shown) = answer["Dir"].as_str() {
        assert!(std::path::Path::new(shown).starts_with(hall.root()) && !shown.contains(".."), "{shown}");
    }
}

fn assert_told(text: &str) {
    assert!(text.len() <= MOST_TOLD && !text.contains(char::is_control), "{text:?}");
    assert!(!text.contains("panic"), "{text}");
}

/// A layer that can be unpacked.
fn layer() -> Vec<u8> {
    Tar::of(&[Raw::new(b'5', "d"), Raw::new(b'0', "d/file").data("data"), Raw::new(b'2', "link").link("/etc")])
}

/// Where containerd's calls are.
const CALLS: [&str; 12] = [
    "/containerd.services.snapshots.v1.Snapshots/Prepare",
    "/containerd.services.snapshots.v1.Snapshots/View",
    "/containerd.services.snapshots.v1.Snapshots/Mounts",
    "/containerd.services.snapshots.v1.Snapshots/Commit",
    "/containerd.services.snapshots.v1.Snapshots/Remove",
    "/containerd.services.snapshots.v1.Snapshots/Stat",
    "/containerd.services.snapshots.v1.Snapshots/Update",
    "/containerd.services.snapshots.v1.Snapshots/List",
    "/containerd.services.snapshots.v1.Snapshots/Usage",
    "/containerd.services.snapshots.v1.Snapshots/Cleanup",
    "/containerd.services.diff.v1.Diff/Apply",
    "/containerd.services.diff.v1.Diff/Diff",
];
const APPLY: usize = 10;
const DIFF: usize = 11;

/// containerd's calls: each is a byte for which, two for the length of its message, and that. Where a mount's source is `@` and
/// a letter, it is one that was answered before, as nobody can guess those.
pub(crate) fn snapshotter(data: &[u8]) {
    hall::with(|hall| {
        hall.content.add(TAR, &layer());
        let (mut rest, mut known) = (data, Vec::new());
        for _ in 0..MOST_CALLS {
            let Some(([call, low, high], more)) = rest.split_first_chunk::<3>() else { break };
            let length = usize::from(u16::from_le_bytes([*low, *high])).min(more.len());
            let (message, more) = more.split_at(length);
            rest = more;
            asked(hall, usize::from(*call) % CALLS.len(), message, &mut known);
        }
        *hall.content.state() = State::default();
        hall.settle();
    });
}

const TAR: &str = "application/vnd.oci.image.layer.v1.tar";

fn asked(hall: &Hall, call: usize, message: &[u8], known: &mut Vec<Mount>) {
    let message = with_sources(call, message, known);
    let answers = hall.runtime.block_on(async {
        let answers = async {
            let mut client = tonic::client::Grpc::new(hall.channel.clone());
            client.ready().await.map_err(|e| Status::unavailable(e.to_string()))?;
            let path = tonic::codegen::http::uri::PathAndQuery::from_static(CALLS[call]);
            let mut stream = client.server_streaming(request(message), path, Bytes).await?.into_inner();
            let mut answers = Vec::new();
            while let Some(answer) = stream.message().await? {
                answers.push(answer);
            }
            Ok::<_, Status>(answers)
        };
        tokio::time::timeout(std::time::Duration::from_secs(60), answers).await
    });
    match answers.expect("an answer") {
        Ok(answers) if call < 3 => {
            let mounts = answers.first().map(|answer| MountsResponse::decode(&answer[..]).expect("mounts").mounts);
            for mount in mounts.unwrap_or_default() {
                let inside = std::path::Path::new(&mount.source).starts_with(hall.root());
                assert!(inside && !mount.source.contains("..") && mount.r#type == "bind", "{mount:?}");
                known.push(mount);
            }
        }
        Ok(_) => {}
        Err(status) => {
            assert_told(status.message());
            // Other than for what is no message, it isn't the server's fault.
            let undecoded = status.message().contains("decode");
            let fault = matches!(status.code(), Code::Internal | Code::Unknown | Code::DataLoss);
            assert!(!fault || undecoded, "{}: {status:?}", CALLS[call]);
        }
    }
}

/// In the name of a client with a lease.
fn request(message: Vec<u8>) -> Request<Vec<u8>> {
    let mut request = Request::new(message);
    for (name, value) in [("containerd-namespace", "tests"), ("containerd-lease", "a-lease")] {
        request.metadata_mut().insert(name, value.parse().expect("ASCII"));
    }
    request
}

fn with_sources(call: usize, message: &[u8], known: &[Mount]) -> Vec<u8> {
    let replace = |mounts: &mut Vec<Mount>| {
        for mount in mounts {
            if let [b'@', letter] = mount.source.as_bytes()
                && let Some(one) = usize::from(*letter).checked_rem(known.len())
            {
                mount.source.clone_from(&known[one].source);
            }
        }
    };
    match call {
        APPLY => ApplyRequest::decode(message).map_or_else(
            |_| message.to_vec(),
            |mut request| {
                replace(&mut request.mounts);
                request.encode_to_vec()
            },
        ),
        DIFF => DiffRequest::decode(message).map_or_else(
            |_| message.to_vec(),
            |mut request| {
                replace(&mut request.left);
                replace(&mut request.right);
                request.encode_to_vec()
            },
        ),
        _ => message.to_vec(),
    }
}

/// Messages as they are.
struct Bytes;

impl Codec for Bytes {
    type Encode = Vec<u8>;
    type Decode = Vec<u8>;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Bytes {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, item: Vec<u8>, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put_slice(&item);
        Ok(())
    }
}

impl Decoder for Bytes {
    type Item = Vec<u8>;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Vec<u8>>, Status> {
        let mut message = vec![0; buffer.remaining()];
        buffer.copy_to_slice(&mut message);
        Ok(Some(message))
    }
}

/// Something to begin with, for each target.
pub(crate) fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let mut seeds = Vec::new();
    seeds.extend(http_seeds().into_iter().map(|seed| ("http", seed)));
    seeds.extend(plugin_seeds().into_iter().map(|seed| ("plugin", seed.into_bytes())));
    seeds.extend(http2_seeds().into_iter().map(|frames| ("http2", [&[1], &frames[..]].concat())));
    seeds.push(("http2", [&[0], PREFACE, NO_SETTINGS].concat()));
    seeds.push(("http2", b"\x00POST /containerd.services.snapshots.v1.Snapshots/List HTTP/1.1\r\n\r\n".to_vec()));
    seeds.extend(snapshotter_seeds().into_iter().map(|calls| ("snapshotter", of_calls(&calls))));
    seeds
}

fn http_seeds() -> Vec<Vec<u8>> {
    let post = |call: &str, head: &str, body: &str| {
        format!("POST /{call} HTTP/1.1\r\nHost: \r\n{head}\r\n{body}").into_bytes()
    };
    let sized = |call: &str, body: &str| post(call, &format!("Content-Length: {}\r\n", body.len()), body);
    let (create, exists) = (r#"{"ID":"a","Parent":""}"#, r#"{"ID":"a"}"#);
    let chunked = "Transfer-Encoding: chunked\r\n";
    vec![
        sized("Plugin.Activate", ""),
        [sized("GraphDriver.Create", create), sized("GraphDriver.Get", exists)].concat(),
        [sized("GraphDriver.Create", create), sized("GraphDriver.Diff", exists)].concat(),
        post("GraphDriver.Exists", chunked, "a\r\n{\"ID\":\"a\"}\r\n0\r\n\r\n"),
        [
            sized("GraphDriver.Create", create),
            post("GraphDriver.ApplyDiff?id=a&parent=", chunked, "4\r\ntar?\r\n0\r\n\r\n"),
        ]
        .concat(),
        post("GraphDriver.Exists", "Content-Length: 9\r\nExpect: 100-continue\r\n", ""),
        post("GraphDriver.Exists", "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n"),
        post("GraphDriver.Status", "Connection: upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n", ""),
        b"GET http://d/GraphDriver.Status HTTP/1.0\r\n\r\n".to_vec(),
        [PREFACE, NO_SETTINGS].concat(),
    ]
}

fn plugin_seeds() -> Vec<String> {
    let init = json!({
        "Home": "/x", "Opts": ["size=1G"],
        "UIDMaps": [{ "container_id": 0, "host_id": 1000, "size": 65536 }],
        "GIDMaps": [{ "container_id": 0, "host_id": 1000, "size": 65536 }],
    });
    let create = json!({ "ID": "a", "Parent": "", "MountLabel": "u:r:t:s0", "StorageOpt": { "size": "1M" } });
    let long = "ü".repeat(1500);
    let calls: &[&[&str]] = &[
        &[r#"Init {"Home":"/x"}"#, "Capabilities {}", "Status {}", "Cleanup {}"],
        &[&format!("Init {init}"), r#"Create {"ID":"a"}"#, r#"Get {"ID":"a"}"#],
        &[&format!("Create {create}"), r#"Exists {"ID":"a"}"#],
        &[
            r#"Create {"ID":"l","Parent":""}"#,
            "ApplyDiff id=l&parent=",
            r#"CreateReadWrite {"ID":"c-init","Parent":"l"}"#,
            r#"Get {"ID":"c-init"}"#,
            r#"CreateReadWrite {"ID":"c","Parent":"c-init"}"#,
            r#"Get {"ID":"c"}"#,
            r#"Changes {"ID":"c","Parent":"c-init"}"#,
            r#"DiffSize {"ID":"l","Parent":""}"#,
            r#"Diff {"ID":"l","Parent":""}"#,
            r#"GetMetadata {"ID":"c"}"#,
            r#"Put {"ID":"c"}"#,
            r#"Remove {"ID":"c"}"#,
        ],
        &["Remove {\"ID\":\"../../etc\"}", "Get {\"ID\":\"\\u0000\\u001b[2J\"}", "Create {\"ID\":\"a/../b\"}"],
        &[r#"Diff {"ID":"a"}"#, "Diff []", "Exists", "Nothing {}", r#"Create {"ID":"a","ID":"b"}"#],
        &["ApplyDiff id=%2e%2e/x&parent=%00&id=y", "ApplyDiff", r#"Create {"ID":"x","Parent":"x"}"#],
        &[&format!(r#"Get {{"ID":"{long}"}}"#), &format!(r#"Create {{"ID":"{long}","Parent":"{long}"}}"#)],
        &[
            r#"Create {"ID":"a","Parent":""}"#,
            r#"Get {"ID":"a"}"#,
            r#"Create {"ID":"b","Parent":"a"}"#,
            r#"Get {"ID":"b","MountLabel":"u:r:t:s0"}"#,
            "ApplyDiff id=b&parent=a",
            r#"Remove {"ID":"a"}"#,
        ],
        &[r#"Init {"Home":"/x","Opts":["size=1G","=","reflinkd.size=0"]}"#, r#"Init {"UIDMaps":[{"size":0}]}"#],
    ];
    calls.iter().map(|lines| lines.join("\n")).collect()
}

/// A frame: length, type, flags, stream (RFC 9113, 4.1).
fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("small").to_be_bytes();
    [&length[1..], &[kind, flags, 0, 0, 0, stream], payload].concat()
}

/// A call: headers that are literals without an index (RFC 7541, 6.2.2), then its message.
fn call(stream: u8, path: &str, message: &[u8]) -> Vec<u8> {
    let mut block = vec![0x83, 0x86];
    for (name, value) in
        [(":path", path), (":authority", "x"), ("content-type", "application/grpc"), ("te", "trailers")]
    {
        block.push(0);
        for text in [name, value] {
            block.push(u8::try_from(text.len()).expect("short"));
            block.extend(text.bytes());
        }
    }
    let length = u32::try_from(message.len()).expect("small").to_be_bytes();
    [frame(1, 4, stream, &block), frame(0, 1, stream, &[&[0], &length[..], message].concat())].concat()
}

fn http2_seeds() -> Vec<Vec<u8>> {
    let prepare = PrepareSnapshotRequest { key: "k".into(), ..Default::default() }.encode_to_vec();
    let remove = RemoveSnapshotRequest { key: "k".into(), ..Default::default() }.encode_to_vec();
    let (prepares, lists) = (call(1, CALLS[0], &prepare), call(3, CALLS[7], &[]));
    vec![
        prepares.clone(),
        [&prepares[..], &lists, &call(5, CALLS[4], &remove)].concat(),
        [&prepares[..], &frame(3, 0, 1, &[0, 0, 0, 8])].concat(),
        [frame(6, 0, 0, b"pingpong"), frame(8, 0, 0, &[0x7f, 0xff, 0xff, 0xff]), lists].concat(),
        [frame(4, 0, 0, &[0, 4, 0, 0, 0, 0]), prepares].concat(),
        [frame(2, 0, 1, &[0, 0, 0, 0, 1]), frame(7, 0, 0, &[0; 8])].concat(),
        call(1, "/grpc.health.v1.Health/Check", b""),
        frame(1, 0, 1, &[0x82, 0x3f, 0xe1, 0xff, 0x03]),
        frame(9, 4, 1, b""),
    ]
}

fn of_calls(calls: &[(u8, Vec<u8>)]) -> Vec<u8> {
    let mut data = Vec::new();
    for (call, message) in calls {
        data.push(*call);
        data.extend(u16::try_from(message.len()).expect("small").to_le_bytes());
        data.extend(message);
    }
    data
}

fn snapshotter_seeds() -> Vec<Vec<(u8, Vec<u8>)>> {
    let labels = |pairs: &[(&str, &str)]| pairs.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect();
    let made = |key: &str, parent: &str, pairs: &[(&str, &str)]| {
        let (key, parent) = (key.to_string(), parent.to_string());
        PrepareSnapshotRequest { key, parent, labels: labels(pairs), ..Default::default() }.encode_to_vec()
    };
    let commit = |name: &str, key: &str| {
        let (name, key) = (name.to_string(), key.to_string());
        CommitSnapshotRequest { name, key, labels: labels(&[("a", "b")]), ..Default::default() }.encode_to_vec()
    };
    // Mounts, Remove, Stat and Usage: a snapshotter and a key each.
    let key = |key: &str| RemoveSnapshotRequest { key: key.into(), ..Default::default() }.encode_to_vec();
    let list = |filters: &[&str]| {
        let filters = filters.iter().map(ToString::to_string).collect();
        ListSnapshotsRequest { filters, ..Default::default() }.encode_to_vec()
    };
    let mount = |source: &str, options: &[&str]| {
        let options = options.iter().map(ToString::to_string).collect();
        vec![Mount { r#type: "bind".into(), source: source.into(), target: String::new(), options }]
    };
    let tar = layer();
    let blob = Descriptor {
        media_type: TAR.into(),
        digest: reflinkd::oci::Digest::of(&tar).to_string(),
        size: i64::try_from(tar.len()).expect("small"),
        ..Default::default()
    };
    let apply =
        |mounts: Vec<Mount>| ApplyRequest { diff: Some(blob.clone()), mounts, ..Default::default() }.encode_to_vec();
    let diff =
        |left, right| DiffRequest { left, right, media_type: TAR.into(), ..Default::default() }.encode_to_vec();
    let update = |name: &str, paths: &[&str]| {
        let info = Info { name: name.into(), labels: labels(&[("a", "c"), ("gone", "")]), ..Default::default() };
        let paths = paths.iter().map(ToString::to_string).collect();
        let update_mask = Some(prost_types::FieldMask { paths });
        UpdateSnapshotRequest { info: Some(info), update_mask, ..Default::default() }.encode_to_vec()
    };
    let long = "ü".repeat(2100);
    let ids = [
        ("containerd.io/snapshot/uidmapping", "0:1000:65536,65536:0:1"),
        ("containerd.io/snapshot/gidmapping", "0:1000:65536"),
    ];
    vec![
        vec![
            (0, made("a", "", &[])),
            (3, commit("base", "a")),
            (0, made("c", "base", &[])),
            (1, made("v", "base", &[])),
        ],
        vec![(0, made("a", "", &ids)), (2, key("a")), (5, key("a")), (8, key("a")), (4, key("a")), (9, Vec::new())],
        vec![(0, made("a", "", &[("containerd.io/snapshot/max-size", "1048576")])), (2, key("a"))],
        vec![
            (0, made("ns/1/extract", "", &[("containerd.io/snapshot.ref", "sha256:0")])),
            (10, apply(mount("@0", &["rbind", "rw"]))),
            (3, commit("l", "ns/1/extract")),
            (0, made("c", "l", &[])),
            (11, diff(mount("@0", &["rbind", "ro"]), mount("@1", &["rbind", "rw"]))),
            (8, key("l")),
        ],
        vec![
            (0, made("a", "", &[("a", "b")])),
            (6, update("a", &["labels.a", "labels.gone"])),
            (6, update("a", &["kind"])),
        ],
        vec![
            (0, made("a", "", &[("x.y/z", "1")])),
            (7, list(&[r#"kind==active,labels."x.y/z"==1"#, r"name~=/^a\/(b|c)+$/", "parent!=\"\\u00fc\\x20\""])),
            (7, list(&["name~=|(a{1000}){1000}|"])),
        ],
        vec![(10, apply(mount("/etc", &["rbind", "rw"]))), (11, diff(Vec::new(), mount("@0", &["nosuid"])))],
        vec![(0, made("../../etc", "", &[])), (0, made("a\0\u{1b}", "", &[])), (5, key("\u{1b}[2J")), (4, key(""))],
        vec![(7, list(&[&format!("name=={long}=")])), (5, key(&long)), (0, made("a", "", &[(&long, &long)]))],
        vec![(0, made("a", "a", &[])), (3, commit("a", "a")), (1, made("a", "", &[])), (3, commit("b", "a"))],
    ]
}
