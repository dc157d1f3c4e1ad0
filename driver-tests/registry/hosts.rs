//! A pool whose host runs full under a pull: it is broken off while the reserve is still there.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use crate::ground::Ground;
use crate::server::{Content, Server};
use crate::support::image::{Packing, TestImage, sha256};
use crate::support::{MB, arg, random_bytes, run};

/// `host_reserve` by default.
const RESERVE: u64 = 500 * MB;

/// Bytes that are free on the host.
fn free(ground: &Ground) -> u64 {
    let stat = rustix::fs::statvfs(ground.world.fs.path()).expect("statvfs");
    stat.f_bavail * stat.f_frsize
}

/// Let somebody else's file take all of the host but so much.
fn leave(ground: &Ground, left: u64) -> std::fs::File {
    run("sync", &["-f", arg(ground.world.fs.path())]);
    let file = std::fs::File::create(ground.world.fs.path().join("ballast")).expect("create");
    let now = free(ground);
    rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, now - left).expect("fallocate");
    file
}

#[test]
fn a_pull_is_broken_off_before_a_pools_host_is_full() {
    let ground = Ground::in_pool();
    let big = random_bytes(240 * MB);
    let image =
        TestImage::new("big").files(Packing::Plain, &[("first", b"first")]).files(Packing::Plain, &[("big", &big)]);
    drop(big);
    let first = format!("/v2/team/app/blobs/sha256:{}", sha256(&image.layers[0].blob));
    let content = Content::default().image("team/app", "v1", &image);
    // With it, the lower layer comes late: the large one is all ahead of its unpacking.
    let (late, low) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(u64::MAX)));
    let (is_late, seen) = (Arc::clone(&late), Arc::clone(&low));
    let server = Server::start(move |asked| {
        if asked.path == first && is_late.load(Ordering::SeqCst) {
            let mut before = u64::MAX;
            // Until no more is fetched.
            while before != seen.load(Ordering::SeqCst) {
                before = seen.load(Ordering::SeqCst);
                std::thread::sleep(Duration::from_secs(2));
            }
        }
        content.answer(asked)
    });
    let name = format!("{}/team/app:v1", server.address());
    for is_late in [false, true] {
        late.store(is_late, Ordering::SeqCst);
        low.store(u64::MAX, Ordering::SeqCst);
        let ballast = leave(&ground, RESERVE + 70 * MB);
        let done = AtomicBool::new(false);
        let refused = std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::SeqCst) {
                    low.fetch_min(free(&ground), Ordering::SeqCst);
                    std::thread::sleep(Duration::from_millis(20));
                }
            });
            let refused = ground.ask(&["pull", "-q", &name]);
            done.store(true, Ordering::SeqCst);
            refused
        });
        let said = &refused.stderr;
        assert_eq!(refused.status, Some(1), "{said}");
        for part in [&format!("cannot pull {name}: "), "only ", " are kept in reserve", "hint: ", "reflinkd gc"] {
            assert!(said.contains(part), "{part:?}: {said}");
        }
        let lowest = low.load(Ordering::SeqCst);
        assert!(lowest > RESERVE - 50 * MB, "it was broken off when {lowest} bytes were left");
        ballast.set_len(0).expect("truncate");
        ground.assert_untouched("after a pull that found no room");
    }
    late.store(false, Ordering::SeqCst);
    ground.ok(&["pull", "-q", &name]);
    assert_eq!(ground.file(&name, "first"), "first");
    ground.assert_empty_again();
}
