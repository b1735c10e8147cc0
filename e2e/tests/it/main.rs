//! The cluster tests, one module for each suite of `cargo xtask e2e`.

mod endings;
mod faults;
mod smoke;
