//! Small filesystems of a test's own, mounted below the target directory.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use super::{Scratch, arg, require_root, run, scratch, unmount};

/// What a Btrfs filesystem counts, set up as its owner would have, without our own code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum QuotaSetup {
    None,
    /// Simple quotas, on from the first moment.
    Simple,
    /// Full qgroups by `btrfs quota enable`.
    Full,
    /// Full qgroups that the kernel has marked inconsistent.
    Inconsistent,
}

/// A mounted filesystem; unmounted and deleted when dropped.
#[derive(Debug)]
pub(crate) struct LoopFs {
    mount: PathBuf,
    /// Of a Btrfs.
    uuid: OnceLock<String>,
    // Dropped last, and with it the image.
    scratch: Scratch,
}

impl LoopFs {
    /// Btrfs of `size` bytes (sparse) with single metadata.
    pub(crate) fn btrfs(size: u64, quota: QuotaSetup) -> Self {
        let uuid = uuid::Uuid::new_v4().to_string();
        let fs = Self::on_image("btrfs", size, &["mkfs.btrfs", "-q", "-m", "single", "-U", &uuid], "loop");
        fs.uuid.set(uuid).expect("not known before");
        match quota {
            QuotaSetup::None => {}
            QuotaSetup::Simple => enable_simple_quotas(&fs.mount),
            QuotaSetup::Full => enable_full_quotas(&fs.mount),
            QuotaSetup::Inconsistent => {
                enable_full_quotas(&fs.mount);
                make_inconsistent(&fs.mount);
            }
        }
        let claims = match quota {
            QuotaSetup::None => None,
            QuotaSetup::Simple => Some(("squota", "0")),
            QuotaSetup::Full => Some(("qgroup", "0")),
            QuotaSetup::Inconsistent => Some(("qgroup", "1")),
        };
        // Linux shows the mode from 6.7 on, before which there is only one, and its state from 6.1 on.
        let counted = fs.qgroups_dir().exists().then(|| {
            let mode = fs.qgroup_fact("mode").unwrap_or_else(|| "qgroup".to_string());
            let shown = fs.qgroup_fact("inconsistent");
            let unknown = || claims.map_or_else(String::new, |(_, state)| state.to_string());
            (mode, shown.unwrap_or_else(unknown))
        });
        let expected = claims.map(|(mode, inconsistent)| (mode.to_string(), inconsistent.to_string()));
        assert_eq!(counted, expected, "the kernel's quota mode is not the one asked for");
        fs
    }

    /// The same, compressing what is written. Random data stay as long as they are, in extents of at most 128 KiB.
    pub(crate) fn btrfs_zstd(size: u64, quota: QuotaSetup) -> Self {
        let fs = Self::btrfs(size, quota);
        run("mount", &["-o", "remount,compress=zstd", arg(&fs.mount)]);
        fs
    }

    /// ext4 of `size` bytes (sparse).
    pub(crate) fn ext4(size: u64) -> Self {
        Self::on_image("ext4", size, &["mkfs.ext4", "-q", "-F"], "loop")
    }

    /// XFS of `size` bytes (sparse), at least 300 MB, with reflinks.
    pub(crate) fn xfs(size: u64) -> Self {
        Self::xfs_mounted(size, "rw")
    }

    /// XFS that shares blocks, mounted with further options.
    pub(crate) fn xfs_mounted(size: u64, options: &str) -> Self {
        Self::on_image("xfs", size, &["mkfs.xfs", "-q", "-m", "reflink=1"], &format!("loop,{options}"))
    }

    /// XFS as it was before Linux 4.9: files can't share blocks.
    pub(crate) fn xfs_without_reflink(size: u64) -> Self {
        Self::on_image("xfs", size, &["mkfs.xfs", "-q", "-m", "reflink=0"], "loop")
    }

    /// tmpfs of at most `size` bytes.
    pub(crate) fn tmpfs(size: u64) -> Self {
        require_root();
        let fs = Self::unmounted("tmpfs");
        run("mount", &["-t", "tmpfs", "-o", &format!("size={size}"), "none", arg(&fs.mount)]);
        fs
    }

    /// Where it is mounted; root:root.
    pub(crate) fn path(&self) -> &Path {
        &self.mount
    }

    /// The file below the loop device.
    pub(crate) fn image(&self) -> PathBuf {
        self.scratch.path().join("image")
    }

    /// The mounted device, `/dev/loopN`.
    pub(crate) fn device(&self) -> String {
        run("findmnt", &["-n", "-o", "SOURCE", "--mountpoint", arg(&self.mount)]).trim().to_string()
    }

    /// A file of `/sys/fs/btrfs/UUID/qgroups`: `mode`, `inconsistent`; `None` without quotas.
    pub(crate) fn qgroup_fact(&self, name: &str) -> Option<String> {
        let text = fs::read_to_string(self.qgroups_dir().join(name)).ok()?;
        Some(text.trim().to_string())
    }

    /// Where sysfs shows the qgroups: a directory `LEVEL_ID` for each.
    pub(crate) fn qgroups_dir(&self) -> PathBuf {
        Path::new("/sys/fs/btrfs").join(self.uuid.get().expect("it is Btrfs")).join("qgroups")
    }

    /// Reading no longer writes access times.
    pub(crate) fn no_access_times(&self) {
        run("mount", &["-o", "remount,noatime", arg(&self.mount)]);
    }

    /// Unmount and mount again, with further mount options.
    pub(crate) fn remount(&self, options: &str) {
        unmount(&self.mount);
        self.wait_for_detach();
        run("mount", &["-o", &format!("loop,{options}"), arg(&self.image()), arg(&self.mount)]);
    }

    /// Let a mounted XFS write nothing more, as after a power cut. [`LoopFs::remount`] brings it back.
    pub(crate) fn shut_down(&self) {
        run("xfs_io", &["-x", "-c", "shutdown", arg(&self.mount)]);
    }

    /// Lose what the filesystem has in memory, as at a power cut, and mount it again with further mount options. All that it
    /// has written stays, flushed or not: what is missing afterwards was never written.
    pub(crate) fn cut_power(&self, options: &str) {
        let device = self.device();
        let stat = Path::new("/sys/block").join(Path::new(&device).file_name().expect("a name")).join("stat");
        let kept = self.scratch.path().join("kept");
        // A copy of one moment: nothing was written since it began, and nothing is on its way.
        loop {
            let before = writes(&stat);
            run("cp", &["--sparse=always", arg(&self.image()), arg(&kept)]);
            let after = writes(&stat);
            if before == after && after.1 == 0 {
                break;
            }
        }
        let below = run("findmnt", &["-n", "-r", "-R", "-o", "TARGET", arg(&self.mount)]);
        below.lines().skip(1).for_each(|mount| unmount(Path::new(mount)));
        unmount(&self.mount);
        self.wait_for_detach();
        fs::rename(&kept, self.image()).expect("put the copy in place");
        run("mount", &["-o", &format!("loop,{options}"), arg(&self.image()), arg(&self.mount)]);
    }

    /// Whoever copied the mount table meanwhile keeps the filesystem mounted for a moment, and mount(8) would take the
    /// loop device that is still there, read-only or not.
    fn wait_for_detach(&self) {
        let start = std::time::Instant::now();
        while !run("losetup", &["-j", arg(&self.image())]).trim().is_empty() {
            assert!(start.elapsed().as_secs() < 120, "{} stays attached", self.image().display());
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    }

    fn on_image(name: &str, size: u64, mkfs: &[&str], options: &str) -> Self {
        require_root();
        let fs = Self::unmounted(name);
        File::create_new(fs.image()).and_then(|f| f.set_len(size)).expect("create the image file");
        run(mkfs[0], &[&mkfs[1..], &[arg(&fs.image())]].concat());
        // mount's own loop device detaches itself with the unmount, so that even a killed test leaks none
        // once its mount is gone.
        run("mount", &["-o", options, arg(&fs.image()), arg(&fs.mount)]);
        fs
    }

    fn unmounted(name: &str) -> Self {
        let scratch = scratch(name);
        let mount = scratch.path().join("mnt");
        fs::create_dir(&mount).expect("create the mount point");
        Self { mount, uuid: OnceLock::new(), scratch }
    }
}

impl Drop for LoopFs {
    fn drop(&mut self) {
        let umount = |flags: &[&str]| {
            let status = Command::new("umount").args(flags).arg(&self.mount).output();
            status.is_ok_and(|output| output.status.success())
        };
        // Something may still have a file open when a test panics: then it goes when that is closed.
        if !umount(&[]) {
            umount(&["--lazy"]);
        }
    }
}

/// Of a block device's `stat` (Documentation/block/stat.rst): sectors written since it is there, requests on their way.
fn writes(stat: &Path) -> (u64, u64) {
    let text = fs::read_to_string(stat).expect("read the device's statistics");
    let field = |number: usize| text.split_whitespace().nth(number).and_then(|field| field.parse().ok());
    (field(6).expect("sectors written"), field(8).expect("requests in flight"))
}

/// Btrfs-progs of Debian 12 has no `--simple`: without it this is `BTRFS_IOC_QUOTA_CTL` with
/// `BTRFS_QUOTA_CTL_ENABLE_SIMPLE_QUOTA` (linux/btrfs.h).
fn enable_simple_quotas(mount: &Path) {
    static KNOWN: OnceLock<bool> = OnceLock::new();
    if *KNOWN.get_or_init(|| run("btrfs", &["quota", "enable", "--help"]).contains("--simple")) {
        run("btrfs", &["quota", "enable", "--simple", arg(mount)]);
        return;
    }
    let script = "import fcntl,os,struct,sys\n\
        fcntl.ioctl(os.open(sys.argv[1], os.O_RDONLY), 0xc0109428, struct.pack('QQ', 4, 0))";
    run("python3", &["-c", script, arg(mount)]);
}

fn enable_full_quotas(mount: &Path) {
    run("btrfs", &["quota", "enable", arg(mount)]);
    run("btrfs", &["quota", "rescan", "-w", arg(mount)]);
}

/// Assign a subvolume that shares data to a higher group and forbid the rescan that would need.
fn make_inconsistent(mount: &Path) {
    let (one, two) = (mount.join("one"), mount.join("two"));
    run("btrfs", &["subvolume", "create", arg(&one)]);
    fs::write(one.join("data"), super::random_bytes(1 << 20)).expect("write into a subvolume");
    run("btrfs", &["qgroup", "create", "1/4000", arg(mount)]);
    run("btrfs", &["filesystem", "sync", arg(mount)]);
    run("btrfs", &["subvolume", "snapshot", "-i", "1/4000", arg(&one), arg(&two)]);
    run("btrfs", &["filesystem", "sync", arg(mount)]);
    run("btrfs", &["subvolume", "delete", arg(&one), arg(&two)]);
}
