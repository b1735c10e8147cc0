//! The probe as a program: a server and an agent, on loopback only.

#![expect(clippy::unwrap_used, reason = "helpers of tests may panic too")]

mod pause;
mod sessions;
