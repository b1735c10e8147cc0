//! crates/prover
