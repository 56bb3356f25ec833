//! `cargo xtask build`.

use crate::output::{self, Style, paint};
use crate::setup::{self, Purpose};
use anyhow::Result;
use std::path::PathBuf;

/// Build ravelin: one binary with agent, commands and kernel programs.
///
/// Installs the BPF toolchain first if it is missing (see `cargo xtask setup`). The binary is an optimised one, unless
/// `--debug` is given.
#[derive(clap::Args)]
pub struct Args {
    /// Without optimisation of the host side (the kernel programs are always optimised)
    #[arg(long)]
    debug: bool,
}

pub fn run(args: &Args) -> Result<()> {
    let binary = binary(!args.debug)?;
    println!("built {}", paint(Style::Strong, binary.display().to_string()));
    Ok(())
}

/// Builds the binary and says where it is.
pub fn binary(release: bool) -> Result<PathBuf> {
    let tools = setup::ensure(&[Purpose::Build])?;
    output::note(format!("kernel programs by {tools}"));
    let mut command = crate::cargo();
    command.args(["build", "--package", "firewall-userspace", "--bin", "ravelin"]);
    if release {
        command.arg("--release");
    }
    output::run(&mut command)?;
    Ok(crate::target_dir()
        .join(if release { "release" } else { "debug" })
        .join("ravelin"))
}
