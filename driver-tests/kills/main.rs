//! Every verb ended before each of its durable steps, as by `kill -9`: what it was to do is done or not, all else is as it was,
//! nothing is left behind, and whoever only looks meets nothing half-made.
//!
//! The steps are those of `sys::durable`, counted anew for each verb and ground: a new step is covered without a word here.
//! Each test prints how many there were.

#[path = "../support/mod.rs"]
mod support;

#[macro_use]
#[path = "../e2e/grounds.rs"]
mod grounds;
#[path = "../e2e/world.rs"]
mod world;
#[macro_use]
#[path = "../verbs/mod.rs"]
mod verbs;

mod cuts;
mod ending;
mod groups;
mod store;

for_each_table!(crate::ending::each);
