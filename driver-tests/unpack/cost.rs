//! Layers that are small and would cost much: each must be refused, or cost no more than its size lets expect.

use std::cell::Cell;
use std::path::Path;
use std::time::Duration;

use reflinkd::Kind;
use reflinkd::layer::{IdMaps, Limits, Summary, record, unpack};

use super::fixture::{Tmpfs, scratch};
use super::writer::{Raw, Style, Tar};

/// Processor time past which a layer is taken to cost the product of its parts, which for each of these is minutes:
/// a guard against that, not a measure. What they need here, unoptimised, is one to four seconds.
const SOON: Duration = Duration::from_secs(60);

fn soon(what: &str, root: &Path, tar: &[u8]) -> Summary {
    let begun = processor_time();
    let asked = Cell::new(0_u32);
    // Reading the time takes longer than reading an entry.
    let too_long = || {
        asked.set(asked.get() + 1);
        asked.get().is_multiple_of(100) && processor_time() - begun > SOON
    };
    let place = scratch();
    let summary =
        record(&mut &*tar, root, &place.path().join("recipe"), &Limits::default(), &IdMaps::default(), &too_long);
    let took = processor_time() - begun;
    summary.unwrap_or_else(|e| panic!("{what}, after {took:?}: {e}"))
}

/// What this thread has had of a processor: the same on a machine that does other things meanwhile
/// (Documentation/scheduler/sched-stats.rst).
fn processor_time() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").expect("read");
    Duration::from_nanos(text.split(' ').next().and_then(|ns| ns.parse().ok()).expect("ns"))
}

#[test]
fn markers_over_and_over_cost_what_one_costs() {
    const FILES: usize = 5_000;
    for markers in [&["d/.wh..wh..opq"][..], &[".wh.d"], &["d/.wh..wh..opq", ".wh.d", ".wh..wh..opq"]] {
        let root = Tmpfs::new();
        let mut tar = Tar::default();
        for number in 0..FILES {
            tar.entry(&Raw::new(b'0', format!("d/{number}")), Style::Pax);
        }
        for marker in markers.iter().cycle().take(4 * FILES) {
            tar.entry(&Raw::new(b'0', marker), Style::Pax);
        }
        soon(&format!("{markers:?}"), root.path(), &tar.end());
        assert_eq!(root.path().join("d").read_dir().expect("list").count(), FILES, "{markers:?}");
    }
}

#[test]
fn a_marker_at_every_depth_costs_what_one_costs() {
    const DEPTH: usize = 300;
    const FILES: usize = 5_000;
    let at = |depth: usize| vec!["d"; depth].join("/");
    let mut tar = Tar::default();
    for number in 0..FILES {
        tar.entry(&Raw::new(b'0', format!("{}/{number}", at(DEPTH))), Style::Pax);
    }
    // From the bottom up, so that each finds all below it.
    for _ in 0..20 {
        for depth in (1..DEPTH).rev() {
            tar.entry(&Raw::new(b'0', format!("{}/.wh..wh..opq", at(depth))), Style::Pax);
            tar.entry(&Raw::new(b'0', format!("{}/.wh.d", at(depth))), Style::Pax);
        }
    }
    let root = Tmpfs::new();
    soon("markers at every depth", root.path(), &tar.end());
    assert_eq!(root.path().join(at(DEPTH)).read_dir().expect("list").count(), FILES);
}

#[test]
fn contents_that_move_cost_what_they_hold() {
    let deep = vec!["d"; 1000].join("/");
    let mut tar = Tar::default();
    tar.entry(&Raw::new(b'5', &deep), Style::Pax);
    tar.entry(&Raw::new(b'2', "s").link(&deep), Style::Pax);
    for number in 0..10_000 {
        tar.entry(&Raw::new(b'0', "over and over").data("x"), Style::Pax);
        tar.entry(&Raw::new(b'0', format!("s/{number}")).data("x"), Style::Pax);
        tar.entry(&Raw::new(b'1', format!("link {number}")).link(format!("s/{number}")), Style::Pax);
        tar.entry(&Raw::new(b'2', format!("s/{number}")).link("nowhere"), Style::Pax);
    }
    let root = Tmpfs::new();
    soon("contents that move", root.path(), &tar.end());
}

#[test]
fn deep_paths_cost_their_length() {
    // As deep as the limit lets them, missing from the root on, and then each another one.
    let deep = |name: usize| format!("{name}/{}/file", vec!["d"; 4000].join("/"));
    let root = Tmpfs::new();
    let mut tar = Tar::default();
    for name in 0..2 {
        tar.entry(&Raw::new(b'0', deep(name)), Style::Pax);
    }
    // More than are kept open, so that none is found at hand.
    for _ in 0..2 {
        for side in 0..100 {
            let name = format!("0/{}/{side}/file", vec!["d"; 2000 - side].join("/"));
            tar.entry(&Raw::new(b'0', name), Style::Pax);
        }
    }
    for name in 0..2 {
        tar.entry(&Raw::new(b'0', format!(".wh.{name}")), Style::Pax);
    }
    let summary = soon("deep paths", root.path(), &tar.end());
    assert!(summary.entries > 8_000);
}

#[test]
fn parts_of_a_byte_count_as_the_blocks_they_take() {
    let parts = 10_000_u64;
    let map: String = (0..parts).map(|part| format!("{}\n1\n", part * 4096)).collect();
    let mut data = format!("{parts}\n{map}").into_bytes();
    data.resize(data.len().next_multiple_of(512), 0);
    data.resize(data.len() + parts as usize, b'x');
    let mut tar = Tar::default();
    let size = (parts * 4096).to_string();
    tar.pax(&[("GNU.sparse.major", b"1"), ("GNU.sparse.minor", b"0"), ("GNU.sparse.realsize", size.as_bytes())]);
    tar.entry(&Raw::new(b'0', "sparse").data(data), Style::Pax);
    let tar = tar.end();
    let root = Tmpfs::new();
    let limits = |max_bytes| Limits { max_bytes, ..Limits::default() };
    let within = |max_bytes| unpack(&mut &tar[..], root.path(), &limits(max_bytes), &|| false);
    let error = within(parts * 4096 - 1).expect_err("41 MB on disk");
    assert_eq!(error.kind(), Kind::BadInput);
    assert!(error.to_string().contains("larger than the limit of"), "{error}");
    assert!(!root.path().join("sparse").exists(), "refused before anything was written");
    within(parts * 4096 + tar.len() as u64).expect("the limit is large enough");
}
