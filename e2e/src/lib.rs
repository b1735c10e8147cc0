//! What the cluster tests share: the run that they belong to, the cluster that they are given,
//! installing, proving, and watching a lab end.
//!
//! The tests are run by `cargo xtask e2e`, which makes the cluster and sets the environment.

pub mod cluster;
pub mod endings;
pub mod run;

pub use run::Run;
