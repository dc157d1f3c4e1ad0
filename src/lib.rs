//! reflinkd: container storage on Btrfs subvolumes and reflinks.
//!
//! One engine behind several front doors. Dependencies point downwards only, and siblings don't know
//! each other (`layer` and `registry` may use `oci`); `driver-tests/architecture.rs` holds the code to it:
//!
//! ```text
//! cli                  arguments, tables, exit codes; the only place that prints
//! daemon               sockets and wire formats of front doors
//!   engine             the only place that orders steps across index and filesystem
//!     store            records beside the trees and their SQLite index; knows no filesystem
//!     backend          trees, charges, limits: btrfs, reflink, memory; knows no OCI and no database
//!     layer            tar streams into trees
//!       copy           files and trees from one place to another
//!     oci              digests, references, manifests, archives
//!       sys            system calls that no crate wraps safely
//! ```

pub mod backend;
pub mod cli;
pub mod copy;
pub mod daemon;
pub mod engine;
pub mod error;
pub mod layer;
pub mod oci;
pub mod registry;
pub mod store;
pub mod sys;

pub use error::{Context, Error, Kind, Result};
