//! `cargo xtask`: set-up, build, checks, tests, demo and benches.

mod toolchain;

fn main() {
    match toolchain::find() {
        Ok(found) => println!("{found}"),
        Err(reason) => println!("{reason}"),
    }
}
