//! `cargo xtask demo`.

use anyhow::Result;

/// Show ravelin at work.
#[derive(clap::Args)]
pub struct Args {
    #[arg(long)]
    keep: bool,
}

pub fn run(_args: &Args) -> Result<()> {
    Ok(())
}
