//! The engine on the in-memory double: every verb, how it fails, and what it leaves when it dies at any step.
//! On tmpfs; needs root (the records' attributes are `trusted.*`), but no loop device.

#[path = "support/mod.rs"]
mod support;

#[path = "engine/crashes.rs"]
mod crashes;
#[path = "engine/fixture.rs"]
mod fixture;
#[path = "engine/upgrade.rs"]
mod upgrade;
#[path = "engine/verbs.rs"]
mod verbs;
