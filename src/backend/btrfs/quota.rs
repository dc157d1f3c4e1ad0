//! Quota modes and limits.

use nix::errno::Errno;

use super::{Btrfs, tree};
use crate::backend::{Guarantee, Inherited, QuotaMode, Quotas, Tree};
use crate::sys::btrfs::qgroup::{self, LimitOn, QuotaCtl};
use crate::sys::btrfs::{space, subvol};
use crate::{Context, Error, Kind, Result};

impl Btrfs {
    /// The quota mode now. Asked of the kernel each time: others may switch it.
    pub(super) fn mode(&self) -> Result<QuotaMode> {
        let status = qgroup::status(&self.fd).context(|| self.call("BTRFS_IOC_TREE_SEARCH_V2"))?;
        Ok(match status {
            None => QuotaMode::None,
            Some(status) if status.simple => QuotaMode::Simple,
            Some(status) if self.is_inconsistent().unwrap_or(status.inconsistent) => QuotaMode::Inconsistent,
            Some(_) => QuotaMode::Full,
        })
    }

    /// What the kernel thinks of full quotas now; the status item has it only from the next commit on.
    /// `None` before 6.1, and where sysfs isn't mounted.
    fn is_inconsistent(&self) -> Option<bool> {
        let text = std::fs::read_to_string(self.sysfs().join("qgroups/inconsistent")).ok()?;
        Some(text.trim() != "0")
    }

    /// Make what was done to groups durable. Not as thorough as syncfs: dirty data stays where it is.
    pub(super) fn commit(&self) -> Result<()> {
        let transid = space::start_sync(&self.fd).context(|| self.call("BTRFS_IOC_START_SYNC"))?;
        space::wait_sync(&self.fd, transid).context(|| self.call("BTRFS_IOC_WAIT_SYNC"))
    }

    /// Why nothing holds a limit in this mode.
    pub(super) fn refusal(&self, mode: QuotaMode) -> Error {
        let root = self.root.display();
        let (why, hint) = match mode {
            QuotaMode::Inconsistent => (
                format!("the quota groups on {root} are inconsistent and hold no limit"),
                "btrfs quota rescan -w, then try again",
            ),
            _ => (
                format!("quotas are off on {root}, so nothing would hold the limit"),
                "reflinkd quota enable --simple",
            ),
        };
        Error::new(Kind::Unsupported, why).with_hint(hint)
    }

    pub(super) fn switch_quotas(&self, to: QuotaMode) -> Result<()> {
        let from = self.mode()?;
        match (from, to) {
            (_, QuotaMode::Inconsistent) => Err(Error::new(Kind::Invalid, "nobody can ask for inconsistent quotas")),
            (_, QuotaMode::Project) => {
                Err(Error::new(Kind::Unsupported, "Btrfs has no project quotas").with_hint("reflinkd quota enable"))
            }
            (from, to) if from == to => Ok(()),
            (_, QuotaMode::None) => self.quota_ctl(QuotaCtl::Disable),
            (QuotaMode::Inconsistent, QuotaMode::Full) => self.rescan(),
            (QuotaMode::None, QuotaMode::Simple) => self.enable_simple(),
            (QuotaMode::None, QuotaMode::Full) => self.enable_full(),
            // The kernel doesn't change modes: it ignores one while the other is on.
            (_, QuotaMode::Simple) => {
                self.quota_ctl(QuotaCtl::Disable)?;
                // On a kernel without them full quotas are better than none.
                self.enable_simple().inspect_err(|_| {
                    if let Err(error) = self.enable_full() {
                        tracing::warn!(%error, "cannot switch full quotas on again");
                    }
                })
            }
            (_, QuotaMode::Full) => {
                self.quota_ctl(QuotaCtl::Disable)?;
                self.enable_full()
            }
        }
    }

    fn enable_simple(&self) -> Result<()> {
        match qgroup::quota_ctl(&self.fd, QuotaCtl::EnableSimple) {
            Err(Errno::EINVAL | Errno::EOPNOTSUPP) => {
                let message = format!("this kernel has no simple quotas for {}", self.root.display());
                Err(Error::new(Kind::Unsupported, message).with_hint("they need Linux 6.7 or later"))
            }
            other => other.context(|| self.call("BTRFS_IOC_QUOTA_CTL")),
        }
    }

    fn enable_full(&self) -> Result<()> {
        self.quota_ctl(QuotaCtl::Enable)?;
        self.rescan()
    }

    fn quota_ctl(&self, what: QuotaCtl) -> Result<()> {
        qgroup::quota_ctl(&self.fd, what).context(|| self.call("BTRFS_IOC_QUOTA_CTL"))
    }

    /// Count everything anew, and wait for it.
    fn rescan(&self) -> Result<()> {
        match qgroup::quota_rescan(&self.fd) {
            // Enabling has begun one.
            Ok(()) | Err(Errno::EINPROGRESS) => {}
            Err(e) => return Err(e).context(|| self.call("BTRFS_IOC_QUOTA_RESCAN")),
        }
        qgroup::quota_rescan_wait(&self.fd).context(|| self.call("BTRFS_IOC_QUOTA_RESCAN_WAIT"))
    }
}

impl Quotas for Btrfs {
    fn set_limit(&self, tree: &Tree, limit: Option<u64>) -> Result<()> {
        let root = tree.root();
        let fd = tree::open_tree(tree)?;
        let (group, on) = match (self.mode()?, tree.group()) {
            (QuotaMode::Simple, Some(id)) => (self.qgroup(id), LimitOn::Referenced),
            (QuotaMode::Simple, None) => {
                let message = format!("{} was made without a quota group", root.display());
                return Err(Error::new(Kind::Unsupported, message));
            }
            (QuotaMode::Full, _) => {
                let info = subvol::get_subvol_info(&fd);
                let call = || format!("BTRFS_IOC_GET_SUBVOL_INFO {}", root.display());
                (info.context(call)?.id, LimitOn::Exclusive)
            }
            (mode, _) => return Err(self.refusal(mode)),
        };
        match qgroup::limit(&self.fd, group, on, limit) {
            // Quotas were off when it was made, or have been since.
            Err(Errno::ENOENT) => {
                let message = format!("{} has no quota group on this filesystem", root.display());
                return Err(Error::new(Kind::Unsupported, message));
            }
            other => other.context(|| format!("limit {}", root.display()))?,
        }
        self.commit()
    }

    fn guarantee(&self) -> Guarantee {
        match self.mode() {
            Ok(QuotaMode::Simple) => Guarantee::Holds,
            _ => Guarantee::EscapedByNestedSubvolumes,
        }
    }

    fn inherited(&self) -> Inherited {
        match self.mode() {
            Ok(QuotaMode::Simple) => Inherited::Origin,
            _ => Inherited::Nobody,
        }
    }
}
