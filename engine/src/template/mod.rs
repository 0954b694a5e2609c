//! Templates: machines that have booted and mounted an image's root, to be cloned instead of booted again.
//!
//! ```text
//! key = everything that a template is made of
//! find ──► templates/KEY, locked shared ──► a clone: snapshot + a copy of the writable layer
//!   └ none ──► KEY.lock ──► make: boot, mount the root, snapshot ──► rename to templates/KEY
//! ```
//!
//! A template has nothing of one container in it: no name, no address, no secret, no process but the agent. What
//! it is made of is in its key, so a change of any part leads to another template; the old one stays until
//! `lighter system prune`, or until its image is removed.

mod key;
mod layer;
mod make;
mod store;

pub use key::{Ingredients, Key};
pub use layer::copy_sparse;
pub use make::{MakeError, Maker, lock};
pub use store::{Template, TemplateStore, Usage};
