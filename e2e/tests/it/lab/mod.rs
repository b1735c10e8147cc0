//! The lab itself: its commands do what they say, and however it ends nothing is left behind.

mod commands;
mod endings;
