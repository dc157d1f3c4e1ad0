//! What the backend makes of the ways in which XFS can be mounted, and of what users do to its projects.

use std::fs;
use std::path::{Path, PathBuf};

use reflinkd::Kind;
use reflinkd::backend::reflink::Reflink;
use reflinkd::backend::{Access, Backend, GroupId, QuotaMode, SizeMethod, Tree, Want};
use reflinkd::sys::reflink::{Project, project, set_project};
use reflinkd::sys::xfs::XfsFd;
use reflinkd::sys::xfs::quota::ProjectQuotas;

use crate::support::{GIB, LoopFs, MB, MIB, arg, fill, random_bytes, run, write_random};

const PREFIX: u16 = 0x7e57;
const LIMIT: u64 = 10 * MIB;

fn open(path: &Path) -> XfsFd {
    XfsFd::open(path).expect("open a directory on XFS")
}

fn backend(root: &Path) -> Reflink {
    Reflink::make(root).expect("make the trash");
    Reflink::open(root, PREFIX).expect("open the backend")
}

fn place(root: &Path, name: &str, group: u32) -> Tree {
    let place: PathBuf = root.join(name);
    fs::create_dir(&place).expect("mkdir");
    Tree::new(place, Some(GroupId(group)))
}

fn measure(backend: &Reflink, tree: &Tree) -> (SizeMethod, u64) {
    let measured = backend.measure(&[tree], Want { sync: true, apparent: false }).expect("measure");
    (measured.method, measured.sizes[0].charged)
}

#[test]
fn without_enforcement_sizes_are_counted_and_limits_refused() {
    let fs = LoopFs::xfs_mounted(GIB, "pqnoenforce");
    let backend = backend(fs.path());
    assert_eq!(backend.quota_mode().expect("mode"), QuotaMode::Project);
    assert!(backend.quotas().is_none());
    let tree = place(fs.path(), "tree", 1);
    let error = backend.create(&tree, Some(LIMIT)).expect_err("nothing holds it");
    assert_eq!(error.kind(), Kind::Unsupported, "{error}");
    assert!(error.to_string().contains("not enforced"), "{error}");
    assert!(error.hint().is_some_and(|hint| hint.contains("-o prjquota in place of pqnoenforce")), "{error:?}");
    backend.create(&tree, None).expect("create");
    write_random(&tree.root().join("data"), 5 * MB);
    let (method, charged) = measure(&backend, &tree);
    assert_eq!(method, SizeMethod::ProjectQuota);
    assert!((5 * MB..5 * MB + 64 * 1024).contains(&charged), "{charged}");
}

/// The projects of trees stay through mounts without quotas.
#[test]
fn a_mount_without_quotas_counts_by_extents_and_the_next_one_by_projects() {
    let fs = LoopFs::xfs_mounted(GIB, "prjquota");
    let image = place(fs.path(), "image", 1);
    let web = place(fs.path(), "web", 2);
    {
        let backend = backend(fs.path());
        backend.create(&image, None).expect("create");
        write_random(&image.root().join("data"), 20 * MB);
        backend.clone_tree(&image, &web, Access::Writable, Some(LIMIT)).expect("clone with a limit");
        write_random(&web.root().join("own"), 3 * MB);
        assert_eq!(measure(&backend, &web).0, SizeMethod::ProjectQuota);
    }
    fs.remount("noquota");
    {
        let backend = backend(fs.path());
        let error = backend.no_limits().expect("a reason");
        assert!(error.hint().is_some_and(|hint| hint.contains("prjquota")), "{error:?}");
        let (method, charged) = measure(&backend, &web);
        assert_eq!(method, SizeMethod::Extents);
        assert!((3 * MB..3 * MB + 64 * 1024).contains(&charged), "{charged}");
        write_random(&web.root().join("more"), 2 * MB);
        backend.clone_tree(&image, &place(fs.path(), "late", 3), Access::Writable, None).expect("clone");
    }
    fs.remount("prjquota");
    let backend = backend(fs.path());
    let (method, charged) = measure(&backend, &web);
    assert_eq!(method, SizeMethod::ProjectQuota);
    assert!((5 * MB..5 * MB + 64 * 1024).contains(&charged), "{charged}");
    let written = fill(&web.root().join("log"), GIB);
    assert!(written < LIMIT - 5 * MB, "the limit holds again: it let {written} bytes in");
    let late = Tree::new(fs.path().join("late"), Some(GroupId(3)));
    assert_eq!(measure(&backend, &late), (SizeMethod::ProjectQuota, 0));
    backend.quotas().expect("limits hold").set_limit(&late, Some(LIMIT)).expect("limit what was made without quotas");
    assert!(fill(&late.root().join("log"), GIB) <= LIMIT);
}

#[test]
fn below_a_project_of_somebody_else_trees_have_none() {
    let fs = LoopFs::xfs_mounted(GIB, "prjquota");
    let root = fs.path().join("theirs");
    fs::create_dir(&root).expect("mkdir");
    set_project(open(&root), 77).expect("set the project");
    let backend = backend(&root);
    assert_eq!(backend.quota_mode().expect("mode"), QuotaMode::None);
    let (image, web) = (place(&root, "image", 1), place(&root, "web", 2));
    backend.create(&image, None).expect("create");
    write_random(&image.root().join("data"), MB);
    backend.clone_tree(&image, &web, Access::Writable, None).expect("clone");
    assert_eq!(project(open(&web.root())), Ok(Project { id: 77, inherited: true }));
    backend.replace(&image, &Tree::new(web.place(), Some(GroupId(3))), None).expect("replace");
    let error = backend.create(&place(&root, "limited", 4), Some(LIMIT)).expect_err("nothing holds it");
    assert!(error.to_string().contains("part of project 77"), "{error}");
    backend.destroy(&web).expect("destroy");
}

/// What root in a privileged container can do: the tree is counted by its extents, and nothing fails.
#[test]
fn a_tree_whose_root_was_given_to_another_project_is_counted_by_its_extents() {
    let fs = LoopFs::xfs_mounted(GIB, "prjquota");
    let backend = backend(fs.path());
    let (image, web) = (place(fs.path(), "image", 1), place(fs.path(), "web", 2));
    backend.create(&image, None).expect("create");
    write_random(&image.root().join("data"), 5 * MB);
    backend.clone_tree(&image, &web, Access::Writable, None).expect("clone");
    set_project(open(&web.root()), 0).expect("take it out of its project");
    write_random(&web.root().join("own"), 2 * MB);
    let charged = measure(&backend, &web).1;
    assert!((2 * MB..2 * MB + 64 * 1024).contains(&charged), "{charged}");
    let quotas = backend.quotas().expect("limits hold");
    let error = quotas.set_limit(&web, Some(LIMIT)).expect_err("nothing would hold it");
    assert_eq!(error.kind(), Kind::Unsupported, "{error}");
    backend.destroy(&web).expect("destroy");
}

/// A limit is on disk when `set_limit` returns: a shutdown that throws away the log in memory is a power cut to XFS.
#[test]
fn a_limit_outlives_a_power_cut() {
    let cut = |durably: bool| {
        let fs = LoopFs::xfs_mounted(GIB, "prjquota");
        let project = u32::from(PREFIX) << 16 | 1;
        let tree = place(fs.path(), "tree", 1);
        {
            let backend = backend(fs.path());
            backend.create(&tree, None).expect("create");
            backend.sync().expect("sync");
            if durably {
                backend.quotas().expect("limits hold").set_limit(&tree, Some(LIMIT)).expect("limit");
            } else {
                let quotas = ProjectQuotas::open(open(fs.path())).expect("open the quotas");
                quotas.set_limit(project, Some(LIMIT)).expect("limit");
            }
        }
        run("xfs_io", &["-x", "-c", "shutdown", arg(fs.path())]);
        fs.remount("prjquota");
        ProjectQuotas::open(open(fs.path())).expect("open the quotas").get(project).expect("get").limit
    };
    assert_eq!(cut(true), Some(LIMIT));
    assert_eq!(cut(false), None, "the call alone leaves it in memory: else this test proves nothing");
}

/// Layers are recorded with what they take on disk, whatever they delete.
#[test]
fn what_a_layer_deletes_makes_it_no_smaller() {
    let fs = LoopFs::xfs_mounted(GIB, "prjquota");
    let backend = backend(fs.path());
    let (base, work) = (place(fs.path(), "base", 1), place(fs.path(), "work", 2));
    backend.create(&base, None).expect("create");
    write_random(&base.root().join("large"), 20 * MB);
    write_random(&base.root().join("other"), MB);
    let layer = place(fs.path(), "layer", 1);
    backend.clone_tree(&base, &layer, Access::ReadOnly, None).expect("commit");
    backend.clone_tree(&layer, &work, Access::Writable, None).expect("clone");
    fs::remove_file(work.root().join("large")).expect("remove");
    fs::write(work.root().join("other"), random_bytes(3 * MB)).expect("write");
    assert_eq!(measure(&backend, &work), (SizeMethod::ProjectQuota, 0), "at once, and never less than nothing");
    let (method, size) = backend.measure_for_good(&work).expect("measure");
    assert_eq!(method, SizeMethod::Extents);
    assert!((3 * MB..3 * MB + 64 * 1024).contains(&size), "{size}");
}

/// What is kept when a container is rolled back counts no more against it, and destroying that leaves the limit alone.
#[test]
fn what_is_kept_leaves_the_project() {
    let fs = LoopFs::xfs_mounted(GIB, "prjquota");
    let backend = backend(fs.path());
    let (image, web, kept) = (place(fs.path(), "image", 1), place(fs.path(), "web", 2), place(fs.path(), "kept", 2));
    backend.create(&image, None).expect("create");
    fs::create_dir(image.root().join("dir")).expect("mkdir");
    write_random(&image.root().join("dir/data"), 5 * MB);
    std::os::unix::fs::symlink("dir/data", image.root().join("link")).expect("symlink");
    backend.clone_tree(&image, &web, Access::Writable, Some(LIMIT)).expect("clone with a limit");
    backend.fork(&web, &kept, Access::ReadOnly, None).expect("a snapshot");
    write_random(&web.root().join("dir/own"), 3 * MB);
    let number = project(open(&web.root())).expect("it has one").id;
    let limit = || ProjectQuotas::open(open(fs.path())).expect("open the quotas").get(number).expect("get").limit;
    let before = limit().expect("it has one");
    let was = place(fs.path(), "was", 2);
    backend.roll_back(&kept, &web, Some(LIMIT), &was, &mut || Ok(())).expect("roll back");
    let of = |path: &Path| project(fs::File::open(path).expect("open")).expect("XFS has projects");
    let outside = Project { id: 0, inherited: false };
    for name in ["", "dir", "dir/own", "dir/data"] {
        assert_eq!(of(&was.root().join(name)), outside, "{name}");
        if name != "dir/own" {
            assert_eq!(of(&web.root().join(name)).id, number, "{name}");
        }
    }
    fs::rename(web.root().join("link"), web.root().join("dir/link")).expect("all of the new tree is of its project");
    fs::rename(was.root().join("link"), was.root().join("dir/link")).expect("what is kept can be written to");
    assert_eq!(limit(), Some(before), "it is of the same image");
    assert!(measure(&backend, &web).1 < 64 * 1024, "{:?}", measure(&backend, &web));
    let charged = measure(&backend, &was).1;
    assert!((3 * MB..3 * MB + 64 * 1024).contains(&charged), "{charged}");
    // As a crash leaves it before it was out of its project.
    let inside = fs::File::open(was.root().join("dir")).expect("open");
    set_project(&inside, number).and_then(|()| set_project(open(&was.root()), number)).expect("back into it");
    backend.settle(was.place()).expect("settle");
    assert_eq!((of(&was.root()), of(&was.root().join("dir"))), (outside, outside));
    backend.destroy(&was).expect("destroy");
    backend.destroy(&kept).expect("destroy");
    backend.reclaim(&[GroupId(1), GroupId(2)].into(), std::time::Duration::from_secs(60)).expect("reclaim");
    assert_eq!(limit(), Some(before), "the container's limit is its own still");
    // No room for a second tree under the limit is no reason to refuse.
    fill(&web.root().join("full"), GIB);
    let full = place(fs.path(), "full", 2);
    let snapshot = place(fs.path(), "snapshot", 2);
    backend.fork(&web, &snapshot, Access::ReadOnly, None).expect("a snapshot");
    backend.roll_back(&snapshot, &web, Some(LIMIT), &full, &mut || Ok(())).expect("roll back what is full");
    backend.destroy(&full).expect("destroy");
}
