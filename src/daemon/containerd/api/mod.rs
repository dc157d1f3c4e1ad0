//! containerd's services as they go over the socket: written by `driver-tests/proto` from containerd's protos (Apache-2.0,
//! copyright The containerd Authors), except for this file.

// Servers and clients alike, of which tests use the other half.
#![allow(dead_code, missing_debug_implementations, clippy::all, clippy::pedantic)]

pub mod types {
    include!("containerd.types.rs");
}

pub mod services {
    pub mod content {
        pub mod v1 {
            include!("containerd.services.content.v1.rs");
        }
    }
    pub mod diff {
        pub mod v1 {
            include!("containerd.services.diff.v1.rs");
        }
    }
    pub mod leases {
        pub mod v1 {
            include!("containerd.services.leases.v1.rs");
        }
    }
    pub mod snapshots {
        pub mod v1 {
            include!("containerd.services.snapshots.v1.rs");
        }
    }
}
