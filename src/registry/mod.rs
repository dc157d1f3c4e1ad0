//! Registries: the wire of the OCI distribution specification, as far as it is needed to fetch images and to send them.
//!
//! For: finding out where a name leads ([`Endpoint`]: mirrors, the registry itself, TLS or not), getting past its login
//! (`auth`, `logins`), and handing out one repository's manifests and blobs as they are asked for. It knows no engine, no
//! store and no image: a [`Repository`] is a [`Remote`], which [`Source::remote`](crate::oci::Source::remote) bounds and
//! verifies; a [`Destination`] takes blobs and manifests. It never writes a file, never sends a login anywhere but to the
//! registry it is for (and the token server that this names), and takes no longer than its [`Settings`] allow.
//!
//! What is fetched is asked for by `GET` alone: a repository's manifest by tag or digest, its blobs by digest, from where it
//! broke off if it did. Sending is other verbs on the same [`Endpoint`]s, with the scope `pull,push`; mirrors aren't sent to.
//!
//! ```no_run
//! # use std::sync::Arc;
//! # use reflinkd::oci::{Reference, Source, SourceLimits};
//! # use reflinkd::registry::{Repository, Settings};
//! # fn main() -> reflinkd::Result<()> {
//! let name: Reference = "localhost:5000/team/app:v1".parse()?;
//! let repository = Repository::new(&name, &Arc::new(Settings::default()), Arc::default())?;
//! let source = Source::remote(Arc::new(repository), &name, &SourceLimits::default())?;
//! let image = &source.images()[0]; // of an index, the one for this machine
//! let mut blob = source.layer_reader(&image.layers[0])?; // goes on where a connection broke
//! std::io::copy(&mut blob, &mut std::io::sink()).ok(); // an oci::LayerStream would verify it
//! # Ok(())
//! # }
//! ```
//!
//! ```no_run
//! # use std::sync::Arc;
//! # use reflinkd::oci::{Descriptor, Digest, Reference};
//! # use reflinkd::registry::{Destination, Settings};
//! # fn main() -> reflinkd::Result<()> {
//! let name: Reference = "localhost:5000/team/app:v1".parse()?;
//! let destination = Destination::new(&name, &Arc::new(Settings::default()), Arc::default())?;
//! let bytes = b"{}".to_vec();
//! let blob = Descriptor::new("application/vnd.oci.empty.v1+json", Digest::of(&bytes), bytes.len() as u64);
//! if !destination.has_blob(&blob)? && !destination.mount(blob.digest, "team/base")? {
//!     destination.put_blob(&blob, &|| Ok(Box::new(std::io::Cursor::new(bytes.clone()))))?;
//! } // and when all that a manifest names is there: destination.put_manifest(...)
//! # Ok(())
//! # }
//! ```
//!
//! What a name asks for, with nothing configured:
//!
//! | name | requests |
//! |---|---|
//! | `nginx` | `https://registry-1.docker.io/v2/library/nginx/manifests/latest` |
//! | `ghcr.io/a/b:1` | `https://ghcr.io/v2/a/b/manifests/1` |
//! | `localhost:5000/a@sha256:...` | `https://localhost:5000/v2/a/manifests/sha256:...`, or by plain HTTP if no TLS is spoken there |

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

mod auth;
mod blob;
mod certs;
mod connect;
mod destination;
mod endpoint;
mod http;
mod logins;
mod proxy;
mod repository;
mod words;

pub use destination::Destination;
pub use http::Open;
pub use logins::files_of_user;
pub use proxy::Proxies;
pub use repository::Repository;

/// What an administrator and the user's environment say of registries.
#[derive(Debug, Clone)]
pub struct Settings {
    /// By the name that images have: `docker.io`, `localhost:5000`.
    pub hosts: BTreeMap<String, Host>,
    /// How long to wait for a connection, and then for the next byte.
    pub timeout: Duration,
    /// Directories with a directory for each registry: authorities as `*.crt`, and what we show of ourselves as
    /// `NAME.cert` and `NAME.key`.
    pub certs: Vec<PathBuf>,
    /// Files with logins, as Docker and podman write them; the first that knows a registry counts.
    pub logins: Vec<PathBuf>,
    /// What the environment says of proxies.
    pub proxies: Proxies,
}

/// One registry.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Host {
    /// Where to ask first, in this order: `https://mirror.example`, or with `http://`.
    pub mirrors: Vec<String>,
    /// Whether it may be spoken to without TLS, and with any certificate.
    pub insecure: bool,
}

impl Default for Settings {
    /// Without logins and proxies: those are of a user and an environment.
    fn default() -> Self {
        Self {
            hosts: BTreeMap::new(),
            timeout: Duration::from_secs(60),
            certs: ["/etc/containers/certs.d", "/etc/docker/certs.d"].map(PathBuf::from).to_vec(),
            logins: Vec::new(),
            proxies: Proxies::default(),
        }
    }
}
