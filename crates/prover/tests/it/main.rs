//! The pure core of the prover, from outside.

#![expect(clippy::unwrap_used, reason = "helpers of tests may panic too")]

mod cluster;
mod evidence;
mod faults;
mod manifests;
mod perfect;
mod policies;
mod proofs;
mod report;
mod simulation;
mod verdict;
