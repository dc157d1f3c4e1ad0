//! The one error type that leaves a module of this crate.
//!
//! An error says *what failed, on which object, why, and what to do*:
//!
//! ```text
//! reflinkd: cannot limit container web1 to 10 GB: quotas are off on /var/lib/reflinkd
//! hint: reflinkd quota enable --simple
//! ```
//!
//! The message is built from the inside out: the place that meets the fault says why, each caller that
//! knows the object puts `cannot <verb> <object>` in front with [`Error::context`]. Callers decide by
//! [`Kind`], never by text.

use std::fmt;

/// What a caller can do about an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The user asked for something that can't be meant: an invalid name, an unknown field.
    Invalid,
    /// The named object doesn't exist.
    NotFound,
    /// The name is taken.
    Exists,
    /// Something is using the object.
    InUse,
    /// Input from outside is damaged, lies about itself or tries to escape.
    BadInput,
    /// The filesystem or the limit has no room (ENOSPC, EDQUOT).
    NoSpace,
    /// This filesystem, kernel or mode can't do it.
    Unsupported,
    /// Not allowed: not root, a read-only root.
    Denied,
    /// A signal asked us to stop.
    Interrupted,
    /// The store contradicts itself.
    Damaged,
    /// A system call failed for another reason.
    System,
}

/// A failure, its object, its cause, and a way out.
#[derive(Debug, Clone)]
pub struct Error {
    kind: Kind,
    message: String,
    hint: Option<String>,
    /// For where nobody knows more than what the system said.
    last_hint: Option<&'static str>,
}

/// The result of everything that can fail in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error with its reason in lower case and without a full stop.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), hint: None, last_hint: None }
    }

    /// What a caller can do about it.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The way out, if there is one.
    #[must_use]
    pub fn hint(&self) -> Option<&str> {
        self.hint.as_deref().or(self.last_hint)
    }

    /// Add what the user can do. The innermost hint wins: it knows most.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint.get_or_insert_with(|| hint.into());
        self
    }

    /// Put `cannot <verb> <object>` in front of the reason.
    #[must_use]
    pub fn context(mut self, what: impl fmt::Display) -> Self {
        self.message = format!("{what}: {}", self.message);
        self
    }

    /// An operating system error met in `call`, named with its arguments. One of our own that came through a reader
    /// (`io::Error::other`) stays what it is.
    pub fn system(call: impl fmt::Display, error: &std::io::Error) -> Self {
        if let Some(ours) = error.get_ref().and_then(|inner| inner.downcast_ref::<Self>()) {
            return ours.clone();
        }
        let kind = match error.raw_os_error() {
            Some(libc::ENOSPC | libc::EDQUOT) => Kind::NoSpace,
            Some(libc::ENOENT) => Kind::NotFound,
            Some(libc::EEXIST) => Kind::Exists,
            Some(libc::EPERM | libc::EACCES | libc::EROFS) => Kind::Denied,
            Some(libc::EBUSY | libc::ETXTBSY) => Kind::InUse,
            Some(libc::EOPNOTSUPP | libc::ENOTTY | libc::ENOSYS) => Kind::Unsupported,
            _ => Kind::System,
        };
        let failed = Self::new(kind, format!("{call}: {}", plain(error)));
        match error.raw_os_error() {
            Some(libc::EDQUOT) => {
                failed.with_hint("a size limit is reached; a container gets more by: reflinkd update --size-limit")
            }
            Some(libc::EIO) => Self {
                last_hint: Some("the disk or its filesystem fails: dmesg has the cause; see reflinkd check"),
                ..failed
            },
            _ => failed,
        }
    }
}

/// The system's words without Rust's "(os error 28)".
fn plain(error: &std::io::Error) -> String {
    let text = error.to_string();
    match text.rfind(" (os error ") {
        Some(at) => text[..at].to_string(),
        None => text,
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

/// Puts the call and its object, or the verb and its object, in front of a failure.
pub trait Context<T> {
    /// For a system call: `.or_system(|| format!("open {}", path.display()))`.
    /// For one of our own errors: the same as [`Error::context`].
    fn context<D: fmt::Display>(self, what: impl FnOnce() -> D) -> Result<T>;
}

impl<T> Context<T> for Result<T, Error> {
    fn context<D: fmt::Display>(self, what: impl FnOnce() -> D) -> Result<T> {
        self.map_err(|e| e.context(what()))
    }
}

impl<T> Context<T> for Result<T, std::io::Error> {
    fn context<D: fmt::Display>(self, what: impl FnOnce() -> D) -> Result<T> {
        self.map_err(|e| Error::system(what(), &e))
    }
}

impl<T> Context<T> for Result<T, rustix::io::Errno> {
    fn context<D: fmt::Display>(self, what: impl FnOnce() -> D) -> Result<T> {
        self.map_err(|e| Error::system(what(), &e.into()))
    }
}

impl<T> Context<T> for Result<T, nix::errno::Errno> {
    fn context<D: fmt::Display>(self, what: impl FnOnce() -> D) -> Result<T> {
        self.map_err(|e| Error::system(what(), &e.into()))
    }
}
