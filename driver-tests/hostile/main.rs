//! Hostile images through the whole program: `load` on a real filesystem, beside a canary.
//!
//! Each is refused with one clear error, or contained. Whatever happens: the canary stays as it was, the store
//! holds what it held before, memory and time stay bounded.

#[path = "../support/mod.rs"]
mod support;

#[path = "../unpack/cases.rs"]
mod cases;
#[path = "../unpack/generate.rs"]
mod generate;
// The property tests ask it for the tree, too.
#[allow(dead_code)]
#[path = "../unpack/model.rs"]
mod model;
#[path = "../unpack/random.rs"]
mod random;
#[path = "../unpack/tree.rs"]
mod tree;
#[path = "../e2e/world.rs"]
mod world;
#[path = "../unpack/writer.rs"]
mod writer;

mod accepted;
mod bombs;
mod documents;
mod guard;
mod layers;
mod layout;
mod places;
mod same_tree;
