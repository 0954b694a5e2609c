//! What the end-to-end tests share: a harness that can skip, the `lighter` binary under test, images and
//! guest programs made on the spot, a terminal.

pub mod guest_program;
pub mod harness;
pub mod image;
pub mod lighter;
pub mod namespace;
pub mod pty;
pub mod registry;
pub mod server;
