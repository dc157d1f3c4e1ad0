//! Change feeds: what SEND says, what a manifest says, what walking both trees says, and what two pictures of the trees say are the same, after
//! random edits and in fixed cases for each rule. Needs root, loop devices and Btrfs; fails without them.

#[path = "changes/edits.rs"]
mod edits;
#[path = "changes/fixture.rs"]
mod fixture;
#[path = "changes/grounds.rs"]
mod grounds;
#[path = "changes/kernel.rs"]
mod kernel;
#[path = "changes/manifest.rs"]
mod manifest;
#[path = "changes/model.rs"]
mod model;
#[path = "changes/now.rs"]
mod now;
#[path = "changes/packed.rs"]
mod packed;
#[path = "changes/random.rs"]
mod random;
#[path = "changes/rules.rs"]
mod rules;
mod support;
