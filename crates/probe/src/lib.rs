//! crates/probe
