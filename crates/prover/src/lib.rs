//! Proves from effects what a network policy does.
//!
//! Everything but [`cluster`] is pure: a [`model`] of the policies gives an expected [`table`], the probes and the
//! control's own events ([`evidence`]) give what happened, [`verdict`] compares the two, [`report`] prints it.

pub mod cluster;
pub mod evidence;
pub mod model;
pub mod policies;
pub mod report;
pub mod table;
pub mod trial;
pub mod verdict;
