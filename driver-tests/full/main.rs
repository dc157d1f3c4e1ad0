//! Every verb with each of its durable steps failing, as on a full disk, at a quota, or on a disk that breaks: it says what failed, on
//! which object and why, and all is as it was before it; or it does what it was to do. Whoever only looks, `df`, `gc` and `rm` go
//! on working, and so do they after a reboot.
//!
//! The steps are those of `sys::durable`, counted anew for each verb and ground: a new step is covered without a word here.
//! Each test prints how many failures there were. With `REFLINKD_FULL=all` each step fails in each way, else every
//! other one in one.

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

mod failing;
mod looks;

for_each_table!(crate::failing::each);
