//! `check` and `check --repair` on real filesystems: a catalogue of damages made on purpose, each found, named and mended; and
//! stores in which nothing is found, and nothing touched.

#[path = "../support/mod.rs"]
mod support;
#[path = "../e2e/world.rs"]
mod world;

mod catalogue;
mod hands;
mod healthy;
mod leftovers;
mod picture;
mod store;
mod trees;
