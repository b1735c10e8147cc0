//! The cluster tests, one module for each suite of `cargo xtask e2e`.

mod faults;
mod lab;
mod smoke;
