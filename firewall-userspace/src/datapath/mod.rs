//! (skeleton)

pub mod object;
pub use object::OBJECT;
