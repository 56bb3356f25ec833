//! Waiting for a condition instead of for a time.

use std::fmt::Display;
use std::time::{Duration, Instant};

/// How long a test waits for what should come at once on a machine that is busy with other things.
pub const PATIENCE: Duration = Duration::from_secs(20);

const BETWEEN_LOOKS: Duration = Duration::from_millis(2);

/// Looks until `condition` gives a value, and gives it with the time it took.
///
/// # Panics
/// After [`PATIENCE`], with what was waited for and the last thing seen.
#[track_caller]
pub fn until<T, E: Display>(what: &str, mut condition: impl FnMut() -> Result<T, E>) -> (T, Duration) {
    let start = Instant::now();
    loop {
        match condition() {
            Ok(value) => return (value, start.elapsed()),
            Err(last) if start.elapsed() > PATIENCE => {
                panic!("waited {} s for {what}; last: {last}", PATIENCE.as_secs())
            }
            Err(_) => std::thread::sleep(BETWEEN_LOOKS),
        }
    }
}

/// Looks until `value` gives `expected`.
///
/// # Panics
/// As [`until`].
#[track_caller]
pub fn until_equal<T: PartialEq + std::fmt::Debug>(
    what: &str,
    expected: &T,
    mut value: impl FnMut() -> T,
) -> Duration {
    until(what, || match value() {
        seen if seen == *expected => Ok(()),
        seen => Err(format!("{seen:?}, not {expected:?}")),
    })
    .1
}
