//! `diff.v1`: layers out of a content store and into it, whole or not at all.

use std::collections::HashMap;
use std::fs;
use std::io::{Read, Write};
use std::path::Path;

use tonic::Code;

use crate::api::services::diff::v1::DiffRequest;
use crate::api::types::{Descriptor, Mount};
use crate::serve::{Serve, TAR, apply_request, eventually, fails, in_namespace, labels};
use crate::support::image::{sha256, tar_of};
use crate::support::{MIB, random_bytes};
use crate::world::{Ground, World};

const UNCOMPRESSED: &str = "containerd.io/uncompressed";

on_btrfs_and_xfs! {
    layers_are_applied_however_they_are_packed
    what_changed_is_a_layer
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).and_then(|()| encoder.finish()).expect("gzip")
}

fn gunzip(bytes: &[u8]) -> Vec<u8> {
    let mut plain = Vec::new();
    flate2::read::GzDecoder::new(bytes).read_to_end(&mut plain).expect("gunzip");
    plain
}

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", sha256(bytes))
}

pub(crate) fn files(mount: &Mount) -> Vec<String> {
    let entries = fs::read_dir(&mount.source).expect("readdir");
    let mut names: Vec<String> =
        entries.map(|entry| entry.expect("readdir").file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

pub(crate) fn diff_of(left: &[&Mount], right: &Mount, media_type: &str) -> DiffRequest {
    DiffRequest {
        left: left.iter().map(|mount| (*mount).clone()).collect(),
        right: vec![right.clone()],
        media_type: media_type.to_string(),
        ..DiffRequest::default()
    }
}

fn layers_are_applied_however_they_are_packed(ground: Ground) {
    let world = World::on(ground);
    let serve = Serve::start(&world);
    let content = random_bytes(3 * MIB);
    // Padding behind its end is part of a layer.
    let tar = [tar_of(&[("dir/", b""), ("dir/file", &content), ("gone", b"")]), vec![0; 20 << 10]].concat();
    let zstd = zstd::encode_all(&tar[..], 1).expect("zstd");
    let docker = "application/vnd.docker.image.rootfs.diff.tar";
    for (media_type, blob) in [
        (TAR.to_string(), tar.clone()),
        (format!("{TAR}+gzip"), gzip(&tar)),
        (format!("{TAR}+zstd"), zstd.clone()),
        (docker.to_string(), tar.clone()),
        (docker.to_string(), gzip(&tar)),
        (format!("{docker}.gzip"), gzip(&tar)),
        (format!("{docker}.zstd"), zstd),
        ("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip".to_string(), gzip(&tar)),
    ] {
        let mount = serve.prepare("s", "").expect("prepare");
        let layer = serve.store.add(&media_type, &blob);
        let applied = serve.apply(&layer, &mount).expect("apply");
        let expected = Descriptor {
            media_type: TAR.to_string(),
            digest: digest(&tar),
            size: i64::try_from(tar.len()).expect("small"),
            annotations: HashMap::new(),
        };
        assert_eq!(applied, expected, "{media_type}");
        assert!(fs::read(Path::new(&mount.source).join("dir/file")).expect("read") == content, "{media_type}");
        serve.remove("s").expect("remove");
    }
    // Onto what is there, and durably.
    serve.layer("base", "", &tar);
    let mount = serve.prepare("s", "base").expect("prepare");
    let layer = serve.store.add(TAR, &tar_of(&[(".wh.gone", b""), ("new", b"n")]));
    let mut request = apply_request(&layer, &mount);
    request.sync_fs = true;
    serve.wait(async { serve.diffs().apply(in_namespace(request)).await }).expect("apply");
    assert_eq!(files(&mount), ["dir", "new"]);
    assert_eq!(serve.store.state().strangers, 0, "namespace and lease go along");
}

fn what_changed_is_a_layer(ground: Ground) {
    let world = World::on(ground);
    let serve = Serve::start(&world);
    serve.layer("base", "", &tar_of(&[("old", b"old"), ("gone", b"gone")]));
    let left = serve.view("left", "base").expect("view");
    let right = serve.prepare("right", "base").expect("prepare");
    fs::remove_file(Path::new(&right.source).join("gone")).expect("unlink");
    let content = random_bytes(3 * MIB);
    fs::write(Path::new(&right.source).join("new"), &content).expect("write");
    let mut plains = Vec::new();
    let [gzipped, zstd] = ["gzip", "zstd"].map(|packing| format!("{TAR}+{packing}"));
    // The second is there already.
    let (gzipped, zstd) = (gzipped.as_str(), zstd.as_str());
    for (asked, made) in [("", gzipped), (gzipped, gzipped), (zstd, zstd), (TAR, TAR)] {
        let mut request = diff_of(&[&left], &right, asked);
        request.labels = labels(&[("mine", "1")]);
        let layer = serve.diff(request).expect("diff");
        assert_eq!(layer.media_type, made);
        let (blob, labels) = serve.store.blob(&layer.digest);
        assert_eq!((digest(&blob), blob.len() as i64), (layer.digest.clone(), layer.size));
        let plain = match &made[TAR.len()..] {
            "+gzip" => gunzip(&blob),
            "+zstd" => ::zstd::decode_all(&blob[..]).expect("zstd"),
            _ => blob.to_vec(),
        };
        assert_eq!(labels[UNCOMPRESSED], digest(&plain));
        assert_eq!(labels["mine"], "1");
        plains.push(plain);
    }
    assert!(plains.iter().all(|plain| *plain == plains[0]), "the same each time");
    let mut names: Vec<String> = tar::Archive::new(&plains[0][..])
        .entries()
        .expect("a tar")
        .map(|entry| entry.expect("an entry").path().expect("a path").to_string_lossy().into_owned())
        .collect();
    names.retain(|name| !name.trim_matches(['.', '/']).is_empty());
    names.sort();
    assert_eq!(names, [".wh.gone", "new"]);
    // Against nothing it has all that there is.
    let whole = serve.diff(diff_of(&[], &right, TAR)).expect("diff");
    serve.layer("copy", "", &serve.store.blob(&whole.digest).0);
    let copy = serve.view("copy's view", "copy").expect("view");
    assert_eq!(files(&copy), ["new", "old"]);
    assert!(serve.store.state().ingests.is_empty());
    assert_eq!(serve.store.state().strangers, 0, "namespace and lease go along");
}

#[test]
fn what_isnt_ours_is_for_the_next_differ() {
    let world = World::simple();
    let serve = Serve::start(&world);
    let mount = serve.prepare("s", "").expect("prepare");
    let layer = serve.store.add(TAR, &tar_of(&[("f", b"f")]));
    let elsewhere = world.files.path().join("elsewhere");
    fs::create_dir(&elsewhere).expect("mkdir");
    let other = Mount { source: elsewhere.to_string_lossy().into_owned(), ..mount.clone() };
    let inside = Mount { source: format!("{}/..", mount.source), ..mount.clone() };
    let overlay = Mount { r#type: "overlay".to_string(), ..mount.clone() };
    let odd = Mount { options: [&mount.options[..], &["nosuid".to_string()]].concat(), ..mount.clone() };
    for odd in [&other, &inside, &overlay, &odd] {
        fails(serve.apply(&layer, odd), Code::Unimplemented);
        fails(serve.diff(diff_of(&[], odd, "")), Code::Unimplemented);
        fails(serve.diff(diff_of(&[odd], &mount, "")), Code::Unimplemented);
    }
    let mut two = apply_request(&layer, &mount);
    two.mounts.push(mount.clone());
    fails(serve.wait(async { serve.diffs().apply(in_namespace(two)).await }), Code::Unimplemented);
    let mut with_payload = apply_request(&layer, &mount);
    with_payload.payloads.insert("keys".to_string(), prost_types::Any::default());
    fails(serve.wait(async { serve.diffs().apply(in_namespace(with_payload)).await }), Code::Unimplemented);
    for media_type in [&format!("{TAR}+gzip+encrypted"), "application/vnd.erofs.layer.v1", ""] {
        let layer = Descriptor { media_type: media_type.to_string(), ..layer.clone() };
        fails(serve.apply(&layer, &mount), Code::Unimplemented);
    }
    for media_type in ["application/vnd.erofs.layer.v1", "application/vnd.docker.image.rootfs.diff.tar.gzip"] {
        fails(serve.diff(diff_of(&[], &mount, media_type)), Code::Unimplemented);
    }
    let mut request = diff_of(&[], &mount, "");
    request.source_date_epoch = Some(prost_types::Timestamp { seconds: 1, nanos: 0 });
    fails(serve.diff(request), Code::Unimplemented);
    assert!(files(&mount).is_empty() && fs::read_dir(&elsewhere).expect("readdir").next().is_none());
    assert!(serve.store.state().ingests.is_empty());
}

/// What its descriptor doesn't promise is no layer: whoever asked for it removes what has been made of it.
#[test]
fn a_layer_that_isnt_what_it_should_be_is_not_applied() {
    let world = World::simple();
    let serve = Serve::start(&world);
    let tar = tar_of(&[("file", &random_bytes(2 * MIB)), ("last", b"l")]);
    let good = serve.store.add(&format!("{TAR}+gzip"), &gzip(&tar));
    serve.layer("base", "", &tar_of(&[("base", b"b")]));
    let again = || {
        serve.remove("s").expect("remove");
        let mount = serve.prepare("s", "base").expect("prepare");
        assert_eq!(files(&mount), ["base"]);
        mount
    };
    let mount = serve.prepare("s", "base").expect("prepare");
    // A digest that another blob has.
    let other = Descriptor { digest: digest(b"other"), ..good.clone() };
    fails(serve.apply(&other, &mount), Code::NotFound);
    let real = serve.store.blob(&good.digest);
    for (what, blob) in [
        ("another layer", gzip(&tar_of(&[("evil", b"e")]))),
        ("longer", [&real.0[..], &[0; 10]].concat()),
        ("shorter", real.0[..real.0.len() - 10].to_vec()),
        ("no gzip", tar.clone()),
        ("nothing", Vec::new()),
        ("a flipped bit", {
            let mut blob = real.0.to_vec();
            blob[1 << 20] ^= 1;
            blob
        }),
    ] {
        serve.store.state().blobs.insert(good.digest.clone(), (blob.into(), HashMap::new()));
        let said = fails(serve.apply(&good, &again()), Code::InvalidArgument);
        assert!(said.contains("its blob has"), "{what}: {said}");
    }
    serve.store.state().blobs.insert(good.digest.clone(), real);
    let lies = Descriptor { size: good.size - 1, ..good.clone() };
    fails(serve.apply(&lies, &again()), Code::InvalidArgument);
    let garbage = serve.store.add(TAR, &random_bytes(1 << 20));
    fails(serve.apply(&garbage, &again()), Code::InvalidArgument);
    // A store that fails in the middle.
    serve.store.state().break_reads_after = Some(1 << 20);
    let said = serve.apply(&good, &again()).expect_err("it breaks off");
    assert!(said.message().contains("input/output error"), "{said}");
    serve.store.state().break_reads_after = None;
    let mount = again();
    serve.apply(&good, &mount).expect("apply");
    assert_eq!(files(&mount), ["base", "file", "last"]);
    // Read-only, or done with.
    let view = serve.view("v", "base").expect("view");
    assert!(serve.apply(&good, &view).is_err());
    serve.commit("committed", "s").expect("commit");
    assert!(serve.apply(&good, &mount).is_err());
}

#[test]
fn a_client_that_goes_takes_its_layer_along() {
    let world = World::simple();
    let serve = Serve::start(&world);
    let layer = serve.store.add(TAR, &tar_of(&[("file", &random_bytes(4 * MIB))]));
    let mount = serve.prepare("s", "").expect("prepare");
    serve.store.state().stall_reads_after = Some(1 << 20);
    let (channel, request) = (serve.another_channel(), apply_request(&layer, &mount));
    let begun = serve.begin(async move {
        let mut client = crate::api::services::diff::v1::diff_client::DiffClient::new(channel);
        client.apply(in_namespace(request)).await.map(drop)
    });
    eventually("it reads", || serve.store.state().reading == 1);
    begun.abort();
    eventually("it reads no more", || serve.store.state().reading == 0);
    serve.store.state().stall_reads_after = None;
    eventually("it can be removed", || serve.remove("s").is_ok());
    let mount = serve.prepare("s", "").expect("prepare");
    assert!(files(&mount).is_empty());
    serve.apply(&layer, &mount).expect("apply");
    assert_eq!(files(&mount), ["file"]);
}

#[test]
fn what_cannot_be_written_leaves_nothing() {
    let world = World::simple();
    let serve = Serve::start(&world);
    let right = serve.prepare("s", "").expect("prepare");
    fs::write(Path::new(&right.source).join("file"), random_bytes(4 * MIB)).expect("write");
    serve.store.state().fail_writes_after = Some(1 << 20);
    let said = fails(serve.diff(diff_of(&[], &right, TAR)), Code::ResourceExhausted);
    assert!(said.contains("no space left on device"), "{said}");
    eventually("it is aborted", || serve.store.state().ingests.is_empty());
    // What has a name is its owner's, and begins anew.
    let mut named = diff_of(&[], &right, TAR);
    named.r#ref = "mine".to_string();
    fails(serve.diff(named.clone()), Code::ResourceExhausted);
    assert_eq!(serve.store.state().ingests.keys().collect::<Vec<_>>(), ["mine"]);
    serve.store.state().fail_writes_after = None;
    let layer = serve.diff(named).expect("diff");
    assert_eq!(layer, serve.diff(diff_of(&[], &right, TAR)).expect("diff"), "the same, and there already");
    // Somebody else has put it there, and didn't say what it is.
    serve.store.state().blobs.get_mut(&layer.digest).expect("a blob").1.clear();
    serve.diff(diff_of(&[], &right, TAR)).expect("diff");
    assert_eq!(serve.store.blob(&layer.digest).1[UNCOMPRESSED], layer.digest);
    // The client goes.
    serve.store.state().stall_writes_after = Some(1 << 20);
    let (channel, request) = (serve.another_channel(), diff_of(&[], &right, TAR));
    let begun = serve.begin(async move {
        let mut client = crate::api::services::diff::v1::diff_client::DiffClient::new(channel);
        client.diff(in_namespace(request)).await.map(drop)
    });
    eventually("it writes", || serve.store.state().ingests.values().any(|ingest| ingest.len() > 1 << 20));
    begun.abort();
    eventually("it is aborted", || serve.store.state().ingests.is_empty());
    assert_eq!(serve.store.state().strangers, 0, "namespace and lease go along");
}

#[test]
fn without_containerd_it_is_said_where_it_was_looked_for() {
    let world = World::simple();
    let serve = Serve::start(&world);
    let mount = serve.prepare("s", "").expect("prepare");
    let layer = serve.store.add(TAR, &tar_of(&[("f", b"f")]));
    fs::remove_file(serve.socket().with_file_name("content.sock")).expect("unlink");
    for said in [
        fails(serve.apply(&layer, &mount), Code::Internal),
        fails(serve.diff(diff_of(&[], &mount, "")), Code::Internal),
    ] {
        assert!(said.contains("content.sock") && said.contains("hint: "), "{said}");
    }
}

/// Layers larger than what may be in memory go through it.
#[test]
fn memory_is_bounded() {
    let world = World::simple();
    let serve = Serve::start(&world);
    let tar = tar_of(&[("file", &random_bytes(96 * MIB))]);
    let layer = serve.store.add(&format!("{TAR}+gzip"), &gzip(&tar));
    let before = serve.peak_memory();
    let mount = serve.prepare("s", "").expect("prepare");
    serve.apply(&layer, &mount).expect("apply");
    serve.diff(diff_of(&[], &mount, TAR)).expect("diff");
    let grown = serve.peak_memory() - before;
    assert!(grown < 48 * MIB, "{grown} bytes more");
}

/// containerd says nothing of its client's lease to a differ.
#[test]
fn a_layer_is_kept_until_its_client_can_refer_to_it() {
    let world = World::on(Ground::SIMPLE);
    let serve = Serve::start(&world);
    let right = serve.prepare("right", "").expect("prepare");
    fs::write(Path::new(&right.source).join("new"), "new").expect("write");
    let mut request = in_namespace(diff_of(&[], &right, ""));
    request.metadata_mut().remove("containerd-lease");
    let begun = jiff::Timestamp::now();
    serve.wait(async { serve.diffs().diff(request).await }).expect("diff");
    let state = serve.store.state();
    assert_eq!(state.strangers, 0, "all is written with the lease that was made for it");
    let [lease] = &state.leases[..] else { panic!("one lease: {:?}", state.leases) };
    let until: jiff::Timestamp = lease["containerd.io/gc.expire"].parse().expect("RFC 3339");
    let minutes = until.duration_since(begun).as_mins();
    assert!((5..60).contains(&minutes), "it ends by itself, in {minutes} minutes");
}

/// Nor, in its older versions, of the namespace, which its keys have.
#[test]
fn a_namespace_that_is_not_said_is_that_of_the_snapshot() {
    let world = World::on(Ground::SIMPLE);
    let serve = Serve::start(&world);
    let layer = serve.store.add(TAR, &tar_of(&[("f", b"f")]));
    let right = serve.prepare("tests/7/extract-1 sha256:ab", "").expect("prepare");
    let mut apply = in_namespace(apply_request(&layer, &right));
    apply.metadata_mut().remove("containerd-namespace");
    serve.wait(async { serve.diffs().apply(apply).await }).expect("apply");
    let mut diff = in_namespace(diff_of(&[], &right, TAR));
    diff.metadata_mut().clear();
    serve.wait(async { serve.diffs().diff(diff).await }).expect("diff");
    assert_eq!(serve.store.state().strangers, 0);
    // One that is said counts.
    let other = serve.prepare("other/8/extract-2 sha256:ab", "").expect("prepare");
    serve.apply(&layer, &other).expect("apply");
    assert_eq!(serve.store.state().strangers, 0);
}
