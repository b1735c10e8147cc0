//! Installs the managed applications that one `config.yaml` asks for, and says what it does.
//!
//! Configuration, catalogue and plan are values in and values out; only [`project`], [`chart`], [`helm`],
//! [`cluster`], [`observe`], [`ready`] and [`apply`] touch files, programs or the cluster.

pub mod application;
pub mod apply;
pub mod catalogue;
pub mod chart;
pub mod cli;
pub mod cluster;
pub mod config;
pub mod helm;
pub mod interrupt;
pub mod observe;
pub mod plan;
pub mod problem;
pub mod project;
pub mod ready;
pub mod unmanaged;
mod yaml;
