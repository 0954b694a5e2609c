//! What the API takes and gives, as JSON. The OpenAPI document is made of these.

mod container;
mod create;
mod image;
mod resource;
mod system;

pub use container::*;
pub use create::*;
pub use image::*;
pub use resource::*;
pub use system::*;
