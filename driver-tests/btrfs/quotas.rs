//! Limits, quota modes, and groups that come and go.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};
use std::time::{Duration, Instant};

use reflinkd::Kind;
use reflinkd::backend::{Access, Backend, GroupId, Guarantee, QuotaMode, SizeMethod, Tree, Want};
use reflinkd::sys::btrfs::{BtrfsFd, qgroup, quota_tree};

use super::pool::*;

#[test]
fn limits_count_writes_and_never_the_image() {
    for (mode, guarantee) in
        [(QuotaMode::Simple, Guarantee::Holds), (QuotaMode::Full, Guarantee::EscapedByNestedSubvolumes)]
    {
        let pool = Pool::new("limits", mode);
        let btrfs = pool.open();
        let base = pool.layer(&btrfs, 64 * MIB);
        let web = pool.tree("web", 2);
        btrfs.clone_tree(&base, &web, Access::Writable, Some(20 * MIB)).unwrap();
        assert_eq!(btrfs.quotas().unwrap().guarantee(), guarantee);
        let written = fill(&web.root().join("log"));
        assert!((18 * MIB..20 * MIB).contains(&written), "{mode:?}: {written}");
        assert_eq!(btrfs.quota_mode().unwrap(), mode, "a limit at birth leaves the quotas consistent");

        let quotas = btrfs.quotas().unwrap();
        quotas.set_limit(&web, Some(40 * MIB)).unwrap();
        let written = fill(&web.root().join("log2"));
        assert!((18 * MIB..21 * MIB).contains(&written), "{mode:?}: raised: {written}");
        quotas.set_limit(&web, None).unwrap();
        fs::write(web.root().join("log3"), random(50 * MIB)).unwrap();
        btrfs.sync().unwrap();
        assert!(charged(&btrfs, &web) > 80 * MIB);

        // A sibling without a limit has none.
        let free = pool.clone(&btrfs, &base, "free", 3);
        fs::write(free.root().join("log"), random(30 * MIB)).unwrap();
        btrfs.sync().unwrap();
        // Nor does a clone take over what its source was limited to.
        quotas.set_limit(&web, Some(100 * MIB)).unwrap();
        let copy = pool.clone(&btrfs, &web, "copy", 4);
        fs::write(copy.root().join("log4"), random(110 * MIB)).unwrap();
        btrfs.sync().unwrap();
        // Removal works at the limit.
        quotas.set_limit(&web, Some(MIB)).unwrap();
        btrfs.destroy(&web).unwrap();
        assert!(!btrfs.exists(&web).unwrap());
    }
}

#[test]
fn with_simple_quotas_a_nested_subvolume_does_not_escape() {
    let pool = Pool::new("escape", QuotaMode::Simple);
    let btrfs = pool.open();
    let base = pool.layer(&btrfs, MIB);
    let web = pool.tree("web", 2);
    btrfs.clone_tree(&base, &web, Access::Writable, Some(20 * MIB)).unwrap();
    let nested = make_subvolume(&web.root(), "nested");
    let written = fill(&nested.join("log"));
    assert!((18 * MIB..20 * MIB).contains(&written), "{written}");
    assert_about(charged(&btrfs, &web), written);
}

#[test]
fn reclaim_drops_what_nothing_is_charged_to() {
    let pool = Pool::new("reclaim", QuotaMode::Simple);
    let btrfs = pool.open();
    let fd = BtrfsFd::open(&pool.root).unwrap();
    let foreign = [1 << 48 | 5, 1 << 48 | u64::from(PREFIX - 1) << 32 | 1, 2 << 48 | u64::from(PREFIX) << 32 | 1];
    foreign.iter().for_each(|id| qgroup::create(&fd, *id).unwrap());
    assert_eq!(btrfs.highest_group().unwrap(), None);
    let before = btrfs.space().unwrap();

    let base = pool.layer(&btrfs, 16 * MIB);
    let web = pool.clone(&btrfs, &base, "web", 2);
    fs::write(web.root().join("own"), random(8 * MIB)).unwrap();
    let commit = pool.tree("commit", 3);
    btrfs.clone_tree(&web, &commit, Access::ReadOnly, None).unwrap();
    btrfs.destroy(&web).unwrap();
    assert_eq!(btrfs.highest_group().unwrap(), Some(GroupId(3)));

    // The layer's unpacked tree is gone, its charge isn't; the commit keeps the container's data alive.
    let live = BTreeSet::from([GroupId(1), GroupId(3)]);
    btrfs.reclaim(&live, PATIENCE).unwrap();
    assert_about(charged(&btrfs, &base), 16 * MIB);
    let leftovers = btrfs.leftovers(&live).unwrap();
    assert_eq!(leftovers.iter().map(|l| l.name.as_str()).collect::<Vec<_>>(), ["2"]);
    assert_about(leftovers[0].charged, 8 * MIB);

    for tree in [&commit, &base] {
        btrfs.destroy(tree).unwrap();
    }
    assert_eq!(btrfs.reclaim(&BTreeSet::new(), PATIENCE).unwrap(), 3);
    assert!(btrfs.trim().unwrap() > 0);
    assert_eq!(btrfs.leftovers(&BTreeSet::new()).unwrap(), []);
    let groups = quota_tree::qgroups(&fd, 0..=u64::MAX).unwrap();
    let ids: Vec<_> = groups.iter().map(|g| g.id).collect();
    assert_eq!(ids, [&[5], &foreign[..]].concat(), "only what was there before");
    let after = btrfs.space().unwrap();
    assert!(after.used <= before.used + MIB, "{before:?} {after:?}");
    assert_eq!(after.total, 4096 * MIB);
}

#[test]
fn reclaim_leaves_what_a_process_holds_open() {
    let pool = Pool::new("held", QuotaMode::Simple);
    let btrfs = pool.open();
    let base = pool.layer(&btrfs, MIB);
    let web = pool.clone(&btrfs, &base, "web", 2);
    let mut file = File::create_new(web.root().join("own")).unwrap();
    file.write_all(&random(4 * MIB)).unwrap();
    btrfs.destroy(&web).unwrap();
    let live = BTreeSet::from([GroupId(1)]);
    let start = Instant::now();
    assert_eq!(btrfs.reclaim(&live, Duration::from_millis(300)).unwrap(), 0);
    assert!(start.elapsed() < PATIENCE);
    file.seek(SeekFrom::Start(0)).unwrap();
    assert_about(btrfs.leftovers(&live).unwrap()[0].charged, 4 * MIB);
    drop(file);
    assert_eq!(btrfs.reclaim(&live, PATIENCE).unwrap(), 1);
    assert_eq!(btrfs.leftovers(&live).unwrap(), []);
}

#[test]
fn full_quotas_keep_no_groups_of_destroyed_trees() {
    let pool = Pool::new("stale", QuotaMode::Full);
    let btrfs = pool.open();
    let base = pool.layer(&btrfs, MIB);
    let web = pool.tree("web", 2);
    btrfs.clone_tree(&base, &web, Access::Writable, Some(10 * MIB)).unwrap();
    make_subvolume(&web.root(), "nested");
    btrfs.destroy(&web).unwrap();
    btrfs.destroy(&base).unwrap();
    btrfs.reclaim(&BTreeSet::new(), PATIENCE).unwrap();
    let groups = quota_tree::qgroups(&BtrfsFd::open(&pool.root).unwrap(), 0..=u64::MAX).unwrap();
    assert_eq!(groups.iter().map(|g| g.id).collect::<Vec<_>>(), [5]);
    assert_eq!(btrfs.quota_mode().unwrap(), QuotaMode::Full);
}

#[test]
fn quota_modes_are_switched() {
    let pool = Pool::new("switch", QuotaMode::None);
    let btrfs = pool.open();
    let base = pool.layer(&btrfs, 4 * MIB);
    let web = pool.clone(&btrfs, &base, "web", 2);
    fs::write(web.root().join("own"), random(2 * MIB)).unwrap();
    for mode in [QuotaMode::Simple, QuotaMode::Full, QuotaMode::Simple, QuotaMode::None, QuotaMode::Full] {
        btrfs.set_quota_mode(mode).unwrap();
        btrfs.set_quota_mode(mode).unwrap();
        assert_eq!(btrfs.quota_mode().unwrap(), mode);
        // The tree is older than the quotas: with simple ones nobody is charged for it, so it is counted.
        assert_about(charged(&btrfs, &web), 2 * MIB);
    }
    assert_eq!(btrfs.set_quota_mode(QuotaMode::Inconsistent).unwrap_err().kind(), Kind::Invalid);
    btrfs.set_quota_mode(QuotaMode::Simple).unwrap();
    let error = btrfs.quotas().unwrap().set_limit(&web, Some(MIB)).unwrap_err();
    assert_eq!(error.kind(), Kind::Unsupported, "{error}");

    let broken = Pool::new("mend", QuotaMode::Inconsistent);
    broken.open().set_quota_mode(QuotaMode::Full).unwrap();
    assert_eq!(broken.open().quota_mode().unwrap(), QuotaMode::Full);
}

#[test]
fn clones_are_made_from_many_threads() {
    let pool = Pool::new("threads", QuotaMode::Simple);
    let btrfs = pool.open();
    let base = pool.layer(&btrfs, MIB);
    std::thread::scope(|scope| {
        for thread in 0..16_u32 {
            let (pool, btrfs, base) = (&pool, &btrfs, &base);
            scope.spawn(move || {
                for n in 0..4 {
                    let group = 10 + thread * 4 + n;
                    let tree = pool.tree(&format!("c{group}"), group);
                    btrfs.clone_tree(base, &tree, Access::Writable, Some(10 * MIB)).unwrap();
                }
            });
        }
        // A clean-up that knows none of them must not cost any its group.
        let btrfs = &btrfs;
        scope.spawn(move || {
            for _ in 0..10 {
                btrfs.reclaim(&BTreeSet::from([GroupId(1)]), Duration::ZERO).unwrap();
            }
        });
    });
    for group in 10..74 {
        let tree = pool.tree(&format!("c{group}"), group);
        assert_eq!(btrfs.settle(tree.place()).unwrap(), Some(GroupId(group)));
    }
}

#[test]
fn a_thousand_clones_are_measured_in_one_go() {
    let pool = Pool::new("thousand", QuotaMode::Simple);
    let btrfs = pool.open();
    let base = pool.layer(&btrfs, MIB);
    let trees: Vec<Tree> = (0..1000).map(|n| pool.tree(&format!("c{n}"), 10 + n)).collect();
    std::thread::scope(|scope| {
        for part in trees.chunks(125) {
            let (btrfs, base) = (&btrfs, &base);
            scope.spawn(move || {
                part.iter().for_each(|tree| btrfs.clone_tree(base, tree, Access::Writable, None).unwrap());
            });
        }
    });
    fs::write(trees[7].root().join("own"), random(MIB)).unwrap();
    btrfs.sync().unwrap();
    let all: Vec<&Tree> = trees.iter().collect();
    let start = Instant::now();
    let measured = btrfs.measure(&all, Want { sync: true, apparent: false }).unwrap();
    eprintln!("1,000 clones measured in {:?}", start.elapsed());
    assert_eq!(measured.method, SizeMethod::SimpleQuota);
    for (n, size) in measured.sizes.iter().enumerate() {
        assert_eq!(size.apparent, None);
        if n == 7 {
            assert_about(size.charged, MIB);
        } else {
            assert_eq!(size.charged, 0, "clone {n}");
        }
    }
    let start = Instant::now();
    trees.iter().for_each(|tree| btrfs.destroy(tree).unwrap());
    eprintln!("and removed in {:?}", start.elapsed());
    btrfs.destroy(&base).unwrap();
    btrfs.reclaim(&BTreeSet::new(), PATIENCE).unwrap();
    assert_eq!(btrfs.leftovers(&BTreeSet::new()).unwrap(), []);
}
