//! The program as its users run it: the built binary on real filesystems, asked through its command line and JSON.

#[path = "../support/mod.rs"]
mod support;

mod accounting;
mod bad_input;
mod containers;
mod faults;
mod images;
mod many;
mod program;
mod store;
mod world;
