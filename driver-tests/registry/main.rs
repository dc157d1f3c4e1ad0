//! `pull` and `push` against registries on loopback that the tests make up: good ones, and ones that misbehave.
//!
//! `make test-registry` has Debian's docker-registry, with logins and TLS.

#[path = "../support/mod.rs"]
mod support;
#[path = "../e2e/world.rs"]
mod world;

mod documents;
mod fetching;
mod forms;
mod ground;
mod hosts;
mod logins;
mod pushing;
mod pushing_ways;
mod refused;
mod refusing;
mod routes;
mod server;
mod taking;
mod waiting;
