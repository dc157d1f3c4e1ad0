//! One file per command: an `Args` struct whose doc comments are the help, and one function.

use super::{format, output::Output};

pub(super) mod bundle;
pub(super) mod clone;
pub(super) mod commit;
pub(super) mod completions;
pub(super) mod cp;
pub(super) mod create;
pub(super) mod destroy;
pub(super) mod df;
pub(super) mod diff;
pub(super) mod gc;
pub(super) mod history;
pub(super) mod images;
pub(super) mod import;
pub(super) mod info;
pub(super) mod init;
pub(super) mod inspect;
pub(super) mod layers;
pub(super) mod load;
pub(super) mod man;
pub(super) mod mount;
pub(super) mod ps;
pub(super) mod quota;
pub(super) mod rename;
pub(super) mod reset;
pub(super) mod rm;
pub(super) mod rmi;
pub(super) mod rollback;
pub(super) mod save;
pub(super) mod snapshot;
pub(super) mod snapshots;
pub(super) mod tag;
pub(super) mod tend;
pub(super) mod update;
