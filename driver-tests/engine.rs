//! The engine on the in-memory double: every verb, how it fails, and what it leaves when it dies at any step.
//! On tmpfs; needs root (the records' attributes are `trusted.*`, and views are mounts), but no loop device.

#[path = "support/mod.rs"]
mod support;

#[path = "engine/crashes.rs"]
mod crashes;
#[path = "engine/double.rs"]
mod double;
#[path = "engine/fixture.rs"]
mod fixture;
#[path = "engine/keyed.rs"]
mod keyed;
#[path = "engine/orphans.rs"]
mod orphans;
#[path = "engine/relatives.rs"]
mod relatives;
#[path = "engine/reuse.rs"]
mod reuse;
#[path = "engine/snapshots.rs"]
mod snapshots;
#[path = "engine/spares.rs"]
mod spares;
#[path = "engine/upgrade.rs"]
mod upgrade;
#[path = "engine/verbs.rs"]
mod verbs;
#[path = "engine/views.rs"]
mod views;
