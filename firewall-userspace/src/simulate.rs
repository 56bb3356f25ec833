//! (skeleton) The decision on the host: explain and tests.
