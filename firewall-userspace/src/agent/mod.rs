pub mod config;
pub mod clock;
pub mod counters;
pub mod lock;
pub mod log;
pub mod temporary;
