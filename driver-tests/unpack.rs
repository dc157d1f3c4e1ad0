//! Layers onto real directories: against a reference model, hostile archives, foreign writers, and sizes
//! that hurt. Needs root, and for the model a loop device with Btrfs; fails without them.

#![allow(clippy::unwrap_used)]

#[path = "unpack/cases.rs"]
mod cases;
#[path = "unpack/cost.rs"]
mod cost;
#[path = "unpack/differential.rs"]
mod differential;
#[path = "unpack/doubtful.rs"]
mod doubtful;
#[path = "unpack/escape.rs"]
mod escape;
#[path = "unpack/features.rs"]
mod features;
#[path = "unpack/fixture.rs"]
mod fixture;
#[path = "unpack/foreign.rs"]
mod foreign;
#[path = "unpack/generate.rs"]
mod generate;
#[path = "unpack/ids.rs"]
mod ids;
#[path = "unpack/labels.rs"]
mod labels;
#[path = "unpack/listing.rs"]
mod listing;
#[path = "unpack/model.rs"]
mod model;
#[path = "unpack/packed.rs"]
mod packed;
#[path = "unpack/property.rs"]
mod property;
#[path = "unpack/random.rs"]
mod random;
#[path = "unpack/recipes.rs"]
mod recipes;
#[path = "unpack/restored.rs"]
mod restored;
#[path = "unpack/rules.rs"]
mod rules;
#[path = "unpack/scale.rs"]
mod scale;
#[path = "unpack/tree.rs"]
mod tree;
#[path = "unpack/writer.rs"]
mod writer;
