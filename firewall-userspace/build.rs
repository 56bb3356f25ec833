//! Builds the kernel programs and hands their object to the crate as `RAVELIN_OBJECT`.
//!
//! The target directory is shared by all profiles of the host build: the object does not depend on them.

#[path = "../xtask/src/toolchain.rs"]
mod toolchain;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

fn main() -> ExitCode {
    match build() {
        Ok(object) => {
            println!("cargo::rustc-env=RAVELIN_OBJECT={}", object.display());
            ExitCode::SUCCESS
        }
        Err(error) => {
            println!("cargo::error={error}");
            ExitCode::FAILURE
        }
    }
}

fn build() -> Result<PathBuf, String> {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .ok_or("the crate has no parent directory")?;
    for watched in [
        "firewall-ebpf",
        "firewall-common",
        "xtask/src/toolchain.rs",
        "Cargo.toml",
        "Cargo.lock",
    ] {
        println!("cargo::rerun-if-changed={}", workspace.join(watched).display());
    }
    for name in toolchain::ENVIRONMENT {
        // PATH changes with every shell; the tools that it finds do not.
        if !matches!(*name, "PATH" | "HOME") {
            println!("cargo::rerun-if-env-changed={name}");
        }
    }
    let out = PathBuf::from(std::env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR")?);
    // <target>/<profile>/build/<package>/out
    let target = out
        .ancestors()
        .nth(4)
        .ok_or("OUT_DIR is not below a target directory")?
        .join("bpf");
    let tools = toolchain::find()?;
    let features: &[&str] = if std::env::var_os("CARGO_FEATURE_KERNEL_LOG").is_some() {
        &["log"]
    } else {
        &[]
    };
    let status = toolchain::build_command(&tools, workspace, &target, features)
        .status()
        .map_err(|error| format!("starting {}: {error}", tools.cargo.display()))?;
    if !status.success() {
        return Err(format!(
            "building the kernel programs with {tools} failed ({status}); its messages stand above"
        ));
    }
    let built = target.join(toolchain::TARGET).join("bpf/ravelin-ebpf");
    let object = out.join("ravelin-ebpf.o");
    std::fs::copy(&built, &object).map_err(|error| format!("copying {}: {error}", built.display()))?;
    Ok(object)
}
